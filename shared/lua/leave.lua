-- A reader leaves a job. After the last one the job stops, until a reader comes back.
-- KEYS: readers, cancel flag, owner's waiting, the list that the job may wait in.
-- ARGV: the reader's channel, job id, ttl, the order of its message (tag -1 = not known).
-- Returns 0: others read on; 1: a replica may run it; 2: it waited and is out of the queue.
local readers, flag, waiting, list = unpack(KEYS)
local channel, id, ttl, tag, number = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('srem', readers, channel)
if redis.call('scard', readers) > 0 then return 0 end
redis.call('set', flag, 'left', 'EX', ttl, 'NX')
if tag >= 0 then
  local index, message = index_of(list, tag, number)
  if index then
    redis.call('lrem', list, 1, message)
    redis.call('zrem', waiting, id)
    return 2
  end
end
return 1
