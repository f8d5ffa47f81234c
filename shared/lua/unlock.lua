-- Free the lock of an operation, if it is still its own: another operation may take it any time.
-- KEYS: the lock, operations in flight. ARGV: operation id, member of the operations in flight.
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[1])
redis.call('srem', KEYS[2], ARGV[2])
return 1
