-- Admit a request: check its key's limits, take its id, put it into its place in the queue.
-- KEYS: job, readers, owner's waiting, owner's running, owner's rates, model's turns,
--       last tags of the owners in this list, idempotency key, the job's lease, log and cancel
--       flag, the lower-class jobs, then the model's lists.
-- ARGV: see shared/queue/job_queue.py.
local job, readers, waiting, running, rates, turns, tags, idempotency =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local lease, log, flag = KEYS[9], KEYS[10], KEYS[11]
local lower_class = KEYS[12]
local first_list = 13
local id, payload, message = ARGV[1], ARGV[2], ARGV[3]
local ttl, place_of_list, channel = ARGV[4], tonumber(ARGV[5]), ARGV[6]
local expires_at, fingerprint = ARGV[7], ARGV[9]
local costs = { 1, tonumber(ARGV[8]) }
local max_model_waiting, max_waiting, max_open = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local capacities = { tonumber(ARGV[13]), tonumber(ARGV[14]) } -- requests, tokens a minute
local owner, member = ARGV[15], ARGV[16]
-- The server's clock: with the clocks of several web hosts the buckets would fill too fast.
local time = redis.call('time')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

if fingerprint ~= '' then
  local known = redis.call('get', idempotency)
  if known then return { 'repeated', known } end
end
if redis.call('exists', job, lease) > 0 then return { 'taken' } end

redis.call('zremrangebyscore', waiting, '-inf', now)
redis.call('zremrangebyscore', running, '-inf', now)
local num_waiting = redis.call('zcard', waiting)
local num_open = num_waiting + redis.call('zcard', running)

local rate_names, levels = { 'requests', 'tokens' }, {}
local stored = redis.call('hmget', rates, 'requests', 'tokens', 'at')
local elapsed = math.max(0, now - tonumber(stored[3] or now))
for i, capacity in ipairs(capacities) do
  levels[i] = math.min(capacity, tonumber(stored[i] or capacity) + elapsed * capacity / 60)
end

-- The verdict, a number, then of each rate what remains and the milliseconds until it is full.
local function answer(verdict, ...)
  local reply = { verdict, ... }
  for i, capacity in ipairs(capacities) do
    reply[#reply + 1] = math.max(0, math.floor(levels[i]))
    reply[#reply + 1] = capacity > 0 and math.ceil(60000 * (capacity - levels[i]) / capacity) or 0
  end
  return reply
end

local limit, wait_ms = nil, 0
for i, capacity in ipairs(capacities) do
  if capacity > 0 and costs[i] > 0 and levels[i] < costs[i] then
    limit = limit or rate_names[i]
    wait_ms = math.max(wait_ms, math.ceil(60000 * (costs[i] - levels[i]) / capacity))
  end
end
if limit then return answer(limit, wait_ms) end
if max_open > 0 and num_open >= max_open then return answer('open', num_open) end

local ahead, behind = 0, 0
for i = first_list, #KEYS do
  local length = redis.call('llen', KEYS[i])
  if i < first_list + place_of_list - 1 then ahead = ahead + length else behind = behind + length end
end
if ahead + behind >= max_model_waiting then return answer('queue', ahead + behind) end
if max_waiting > 0 and num_waiting >= max_waiting then return answer('waiting', num_waiting) end

-- Nothing is written before this line: a refused request leaves no trace.
for i, capacity in ipairs(capacities) do
  if capacity > 0 then
    levels[i] = levels[i] - costs[i]
    redis.call('hset', rates, rate_names[i], levels[i], 'at', now)
    redis.call('expire', rates, 3600)
  end
end
-- Keys of an earlier job of this id may still be there.
redis.call('del', readers, log, flag)
redis.call('set', job, payload, 'EX', ttl)
redis.call('sadd', readers, channel)
redis.call('expire', readers, ttl)
redis.call('zadd', waiting, expires_at, id)
redis.call('expire', waiting, ttl)
if member ~= '' then
  redis.call('zadd', lower_class, expires_at, member)
  redis.call('expire', lower_class, ttl)
end
if fingerprint ~= '' then redis.call('set', idempotency, fingerprint .. ' ' .. id, 'EX', ttl) end

-- Start-time fair queueing. The virtual time is the tag of the message at the head, or the last
-- given one when nothing waits. The tags of a key's waiting requests count up from there: its
-- second one stands behind the first ones of all keys.
local list = KEYS[first_list + place_of_list - 1]
local head, top = redis.call('lindex', list, -1), 'top:' .. place_of_list
local virtual = head and math.max(0, order_of(head) - 1) or tonumber(redis.call('hget', turns, top) or 0)
-- When nothing waits the tags mean nothing any more; they must not grow for ever.
if not head or redis.call('hlen', tags) > 10000 then redis.call('del', tags) end
local last = tonumber(redis.call('hget', tags, owner) or 0)
-- At most as far behind as the owner has open requests: some may have left the queue.
local tag = math.max(virtual, math.min(last, virtual + num_open)) + 1
local number = redis.call('hincrby', turns, 'number', 1)
redis.call('hset', turns, top, math.max(tag, tonumber(redis.call('hget', turns, top) or 0)))
redis.call('hset', tags, owner, tag)
redis.call('expire', turns, 3600)
redis.call('expire', tags, 3600)
message = string.gsub(message, '"llmis_order":"@"',
  string.format('"llmis_order":"%d.%d"', tag, number), 1)
local index = place(list, message, tag, number)
ahead = ahead + redis.call('llen', list) - index - 1
return answer('admitted', tag, number, ahead)
