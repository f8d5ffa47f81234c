-- A job has ended, or is given up because it has no reader.
-- KEYS: owner's waiting, owner's running, owner's rates, job, log, lease, readers, jobs that the
--       replica holds.
-- ARGV: job id, refund of tokens, ttl, the job without its request ('' = it is given up), the
--       lease of the holder, the same without a holder.
-- Returns 1 if a job that was given up has a reader again: it must be queued, and is held so long.
local waiting, running, rates, job, log, lease, readers, held = unpack(KEYS)
local id, refund, ttl, ended, mine, released = unpack(ARGV)
settle(waiting, running, rates, id, refund)
if ended ~= '' then
  redis.call('set', job, ended, 'XX', 'EX', ttl)
else
  if redis.call('get', lease) == mine then redis.call('set', lease, released, 'EX', ttl) end
  redis.call('expire', log, ttl)
  redis.call('expire', job, ttl)
  if redis.call('exists', readers) == 1 then return 1 end
end
redis.call('srem', held, id)
return 0
