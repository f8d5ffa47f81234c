-- Queue a job again, before all others: its replica is lost or hands it over, or a client that
-- had left has come back.
-- KEYS: job, readers, cancel flag, owner's waiting, owner's running, the model's first list,
--       the jobs that the replica held, the job's lease and log, the model's turns, the list of the
--       job's class.
-- ARGV: the reader's channel or '', ttl, job id, expiry, message, why: join, requeue or recover;
--       the place of the list of its class, and its message for that list.
-- Of several processes that recover a job the first one queues it. A job without readers stays out.
local job, readers, flag, waiting, running, list, held, lease, log, turns, own_list = unpack(KEYS)
local channel, ttl, id, expires_at, message, why, place_of_list, own_message = unpack(ARGV)
if why == 'recover' and redis.call('srem', held, id) == 0 then return 'taken' end
if redis.call('exists', job) == 0 then return 'gone' end
if channel ~= '' then redis.call('sadd', readers, channel) end
-- It may have waited for long: its keys must live for as long as it may run.
for _, key in ipairs({ job, readers, lease, log }) do
  if why ~= 'recover' and redis.call('ttl', key) < tonumber(ttl) then redis.call('expire', key, ttl) end
end
local had_left = redis.call('get', flag) == 'left'
if had_left and why == 'recover' then
  redis.call('zrem', waiting, id)
  redis.call('zrem', running, id)
  return 'left'
end
if had_left then redis.call('del', flag) end
-- A job that counts as waiting has a message in the queue.
local is_waiting = redis.call('zscore', waiting, id)
if why == 'join' and (is_waiting or not had_left) then return 'there' end
redis.call('zrem', running, id)
redis.call('zadd', waiting, expires_at, id)
redis.call('expire', waiting, ttl)
if why == 'join' and redis.call('exists', lease) == 0 then
  -- It has never begun: a client that comes back must not overtake those that have waited.
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
