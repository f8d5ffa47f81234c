-- A waiting job is one of its owner's running ones from now on.
-- KEYS: owner's waiting, owner's running. ARGV: job id, expiry, ttl.
if redis.call('zrem', KEYS[1], ARGV[1]) == 1 then
  redis.call('zadd', KEYS[2], ARGV[2], ARGV[1])
  redis.call('expire', KEYS[2], ARGV[3])
end
