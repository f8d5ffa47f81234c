-- Queue a job again, before all others: its replica is lost or hands it over, or a client that
-- had left has come back.
-- KEYS: job, readers, cancel flag, owner's waiting, owner's running, the model's first list,
--       the jobs of the replica that had it.
-- ARGV: the reader's channel or '', ttl, job id, expiry, message, why: join, requeue or rescue.
-- A rescue is for the first that comes, and leaves alone what nobody reads.
local job, readers, flag, waiting, running, list, held = unpack(KEYS)
local channel, ttl, id, expires_at, message, why = unpack(ARGV)
if why == 'rescue' and redis.call('srem', held, id) == 0 then return 'taken' end
if redis.call('exists', job) == 0 then return 'gone' end
if channel ~= '' then
  redis.call('sadd', readers, channel)
  redis.call('expire', readers, ttl)
end
local had_left = redis.call('get', flag) == 'left'
if had_left and why == 'rescue' then
  redis.call('zrem', waiting, id)
  redis.call('zrem', running, id)
  return 'left'
end
if had_left then redis.call('del', flag) end
if not had_left and why == 'join' then return 'there' end
redis.call('zrem', running, id)
redis.call('zadd', waiting, expires_at, id)
redis.call('expire', waiting, ttl)
redis.call('lpush', list, message)
return 'queued'
