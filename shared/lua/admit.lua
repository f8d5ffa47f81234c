-- Admit a request: check its key's limits, take its id, put it into its place in the queue.
-- KEYS: job, readers, owner's waiting, owner's running, owner's rates, model's turns,
--       idempotency key, then the model's lists.
-- ARGV: see shared/job_queue.py.
local job, readers, waiting, running, rates, turns, idempotency =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local now, id, payload, message = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local ttl, place_of_list, channel = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local expires_at, cost, fingerprint = ARGV[8], tonumber(ARGV[9]), ARGV[10]
local max_model_waiting, max_waiting, max_open = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local capacities = { tonumber(ARGV[14]), tonumber(ARGV[15]) } -- requests, tokens a minute
local owner = ARGV[16]

if fingerprint ~= '' then
  local known = redis.call('get', idempotency)
  if known then return { 'repeated', known } end
end
if redis.call('exists', job) == 1 then return { 'taken' } end

redis.call('zremrangebyscore', waiting, '-inf', now)
redis.call('zremrangebyscore', running, '-inf', now)
local num_waiting = redis.call('zcard', waiting)
local num_open = num_waiting + redis.call('zcard', running)

local levels, remaining, resets = {}, {}, {}
local costs = { 1, math.min(cost, capacities[2]) }
local stored = redis.call('hmget', rates, 'requests', 'tokens', 'at')
local elapsed = math.max(0, now - tonumber(stored[3] or now))
local wait_ms, limit = 0, nil
for i, name in ipairs({ 'requests', 'tokens' }) do
  local capacity = capacities[i]
  if capacity > 0 then
    local per_second = capacity / 60
    local level = math.min(capacity, tonumber(stored[i] or capacity) + elapsed * per_second)
    levels[i] = level
    if level < costs[i] then
      limit, wait_ms = limit or name, math.max(wait_ms, math.ceil(1000 * (costs[i] - level) / per_second))
    end
    if limit == nil then level = level - costs[i] end
    remaining[i] = math.max(0, math.floor(level))
    resets[i] = math.ceil(1000 * (capacity - level) / per_second)
  else
    remaining[i], resets[i] = -1, -1
  end
end
local state = { remaining[1], resets[1], remaining[2], resets[2] }
if limit then return { limit, wait_ms, unpack(state) } end
if max_open > 0 and num_open >= max_open then return { 'open', num_open, unpack(state) } end

local ahead, behind = 0, 0
for i = 8, #KEYS do
  local length = redis.call('llen', KEYS[i])
  if i < 7 + place_of_list then ahead = ahead + length else behind = behind + length end
end
if ahead + behind >= max_model_waiting then return { 'queue', ahead + behind, unpack(state) } end
if max_waiting > 0 and num_waiting >= max_waiting then
  return { 'waiting', num_waiting, unpack(state) }
end

-- Nothing is written before here: a request that is refused leaves no trace.
if capacities[1] > 0 or capacities[2] > 0 then
  for i, name in ipairs({ 'requests', 'tokens' }) do
    if levels[i] then redis.call('hset', rates, name, levels[i] - costs[i]) end
  end
  redis.call('hset', rates, 'at', now)
  redis.call('expire', rates, 3600)
end
redis.call('set', job, payload, 'EX', ttl)
redis.call('sadd', readers, channel)
redis.call('expire', readers, ttl)
redis.call('zadd', waiting, expires_at, id)
redis.call('expire', waiting, ttl)
if fingerprint ~= '' then redis.call('set', idempotency, fingerprint .. ' ' .. id, 'EX', ttl) end

-- Start-time fair queueing: the tags of a key's waiting requests count up, those of a key that
-- has nothing in the queue begin where the queue's head is.
local list = KEYS[7 + place_of_list]
local head = redis.call('lindex', list, -1)
local virtual = 0
if head then virtual = math.max(0, order_of(head) - 1) end
local field = place_of_list .. ':' .. owner
local last = tonumber(redis.call('hget', turns, field) or 0)
local tag = math.max(virtual, math.min(last, virtual + num_open)) + 1
local number = redis.call('hincrby', turns, 'number', 1)
redis.call('hset', turns, field, tag)
redis.call('expire', turns, 3600)
message = string.gsub(message, '"llmis_order":"@"',
  string.format('"llmis_order":"%d.%d"', tag, number), 1)
local index = place(list, message, tag, number)
ahead = ahead + redis.call('llen', list) - index - 1
return { 'admitted', tag, number, ahead, unpack(state) }
