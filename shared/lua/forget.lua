-- Let an idempotency key go, if it still stands for the same job. KEYS: the key. ARGV: its value.
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
