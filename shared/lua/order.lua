-- A model's queue is a Redis list for each priority: its left end is the back, its right end is
-- next. Inside a list the messages stand in the order of (tag, number), which is in their header.

local function order_of(message)
  local tag, number = string.match(message, '"llmis_order": ?"(%d+)%.(%d+)"')
  return tonumber(tag or 0), tonumber(number or 0)
end

-- When its request was made: Unix time in milliseconds, 0 = unknown.
local function made_ms(message)
  return tonumber(string.match(message, '"llmis_made_ms": ?(%d+)') or 0)
end

-- Index of the first message, from the back, that does not come after (tag, number).
local function find(list, tag, number)
  local low, high = 0, redis.call('llen', list)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local t, n = order_of(redis.call('lindex', list, middle))
    if t < tag or (t == tag and n <= number) then high = middle else low = middle + 1 end
  end
  return low
end

-- Index of the message with exactly this order; nil when it is not in the list any more.
local function index_of(list, tag, number)
  local index = find(list, tag, number)
  local message = redis.call('lindex', list, index)
  if not message then return nil end
  local t, n = order_of(message)
  if t == tag and n == number then return index, message end
  return nil
end

local function place(list, message, tag, number)
  local index = find(list, tag, number)
  if index == 0 then
    redis.call('lpush', list, message)
  elseif index == redis.call('llen', list) then
    redis.call('rpush', list, message)
  else
    redis.call('linsert', list, 'BEFORE', redis.call('lindex', list, index), message)
  end
  return index
end
