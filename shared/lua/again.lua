-- Queue a job again, before all others: its replica is lost or hands it over, or a client that
-- had left has come back.
-- KEYS: job, readers, cancel flag, owner's waiting, owner's running, the model's first list.
-- ARGV: the reader's channel or '', ttl, job id, expiry, message, 1 = queue it in any case.
local job, readers, flag, waiting, running, list = unpack(KEYS)
local channel, ttl, id, expires_at, message, is_lost = unpack(ARGV)
if redis.call('exists', job) == 0 then return 'gone' end
if channel ~= '' then
  redis.call('sadd', readers, channel)
  redis.call('expire', readers, ttl)
end
local had_left = redis.call('get', flag) == 'left'
if had_left then redis.call('del', flag) end
if not had_left and is_lost ~= '1' then return 'there' end
redis.call('zrem', running, id)
redis.call('zadd', waiting, expires_at, id)
redis.call('expire', waiting, ttl)
redis.call('lpush', list, message)
return 'queued'
