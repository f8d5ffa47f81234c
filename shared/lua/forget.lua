-- Delete an idempotency key, if it still names the same job. KEYS: the key. ARGV: its value.
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
