-- Take a job for a replica unless another one has it, and return what the replica needs to run it.
-- KEYS: holders, jobs that this replica holds, job, its lease, log, readers, cancel flag.
-- ARGV: job id, replica id, ttl, the lease to replace ('' = there is none yet), the new lease
--       ('' = take none), names of an owner's waiting and running sets with %s for the owner.
-- Returns the encoded job, the lease that is there now, readers, log, flag, and 1 if the job counts
-- as running. The same call again, because the first answer was lost, returns the same.
local holders, held, job, lease, log, readers, flag = unpack(KEYS)
local id, replica, ttl, expected, new, waiting, running = unpack(ARGV)
local max_decoded_bytes = 32768 -- a larger job would keep the server busy

-- The replica notes the job first: when it dies, its jobs are looked for there.
redis.call('sadd', holders, replica)
redis.call('sadd', held, id)
redis.call('expire', held, ttl)

local payload = redis.call('get', job)
local fields = nil
if payload and #payload <= max_decoded_bytes then
  local is_readable, decoded = pcall(cmsgpack.unpack, payload)
  if is_readable and type(decoded) == 'table' then fields = decoded end
end
if not payload or new == '' or (fields and fields.is_over) then
  return { payload, false, redis.call('smembers', readers), {}, false, 0 }
end

local found = redis.call('get', lease)
if (found or '') == expected then
  redis.call('set', lease, new, 'EX', ttl)
  found = new
end
local has_begun = 0
if fields and type(fields.owner) == 'string' and found and cjson.decode(found).holder == replica then
  begin(string.format(waiting, fields.owner), string.format(running, fields.owner), id, ttl)
  has_begun = 1
end
return {
  payload, found, redis.call('smembers', readers), redis.call('lrange', log, 0, -1),
  redis.call('get', flag), has_begun
}
