-- Note that a model is loaded, if the operation still is the model's current one.
-- KEYS: the lock, models, failures. ARGV: operation id, model, its encoded spec ('' = not kept).
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' then redis.call('hset', KEYS[2], ARGV[2], ARGV[3]) end
redis.call('hdel', KEYS[3], ARGV[2])
return 1
