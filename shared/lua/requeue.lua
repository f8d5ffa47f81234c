-- Queue a job again, before all others: its replica is lost or hands it over, or a client that
-- had left has come back.
-- KEYS: job, readers, cancel flag, owner's waiting, owner's running, the model's first list,
--       the jobs of the replica that had it, the job's claim and log, the model's turns, the list
--       of the job's class.
-- ARGV: the reader's channel or '', ttl, job id, expiry, message, why: join, requeue or rescue;
--       the place of the list of its class, and its message for there.
-- A rescue is for the first that comes, and leaves alone what nobody reads.
local job, readers, flag, waiting, running, list, held, claim, log, turns, own_list = unpack(KEYS)
local channel, ttl, id, expires_at, message, why, place_of_list, own_message = unpack(ARGV)
if why == 'rescue' and redis.call('srem', held, id) == 0 then return 'taken' end
if redis.call('exists', job) == 0 then return 'gone' end
if channel ~= '' then redis.call('sadd', readers, channel) end
-- It may have lain there for long: what it needs is to last for as long as it may run.
for _, key in ipairs({ job, readers, claim, log }) do
  if why ~= 'rescue' and redis.call('ttl', key) < tonumber(ttl) then redis.call('expire', key, ttl) end
end
local had_left = redis.call('get', flag) == 'left'
if had_left and why == 'rescue' then
  redis.call('zrem', waiting, id)
  redis.call('zrem', running, id)
  return 'left'
end
if had_left then redis.call('del', flag) end
-- While it counts as waiting its message is on its way.
local is_waiting = redis.call('zscore', waiting, id)
if why == 'join' and (is_waiting or not had_left) then return 'there' end
redis.call('zrem', running, id)
redis.call('zadd', waiting, expires_at, id)
redis.call('expire', waiting, ttl)
if why == 'join' and redis.call('exists', claim) == 0 then
  -- It has never begun: coming back is no way past those who have waited meanwhile.
  local tag = tonumber(redis.call('hget', turns, 'top:' .. place_of_list) or 0)
  local number = redis.call('hincrby', turns, 'number', 1)
  redis.call('expire', turns, 3600)
  own_message = string.gsub(own_message, '"llmis_order":"@"',
    string.format('"llmis_order":"%d.%d"', tag, number), 1)
  place(own_list, own_message, tag, number)
else
  redis.call('lpush', list, message)
end
return 'queued'
