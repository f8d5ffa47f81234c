-- Give a lease up, if it is still the holder's own. KEYS: the lease.
-- ARGV: the lease of the holder, the same without a holder, ttl.
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('set', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
