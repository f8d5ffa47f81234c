-- The positions of a model's waiting messages: of each list the first 64, and 64 of the rest.
-- KEYS: the model's lists. Returns for each its length, when the oldest of the samples was made
-- (Unix time in milliseconds, 0 = there is none), then place (0 = next), tag and number of each
-- sample, the next one first.
local dense, spread = 64, 64
local reply = {}
for i, list in ipairs(KEYS) do
  local length = redis.call('llen', list)
  local entry = { length, 0 }
  local function add(place_from_front, message)
    local tag, number = order_of(message)
    entry[#entry + 1] = place_from_front
    entry[#entry + 1] = tag
    entry[#entry + 1] = number
    local at = made_ms(message)
    if at > 0 and (entry[2] == 0 or at < entry[2]) then entry[2] = at end
  end
  local front = redis.call('lrange', list, -dense, -1)
  for k = #front, 1, -1 do add(#front - k, front[k]) end
  local rest = length - #front
  local step = math.max(1, math.ceil(rest / spread))
  for place_from_front = dense, length - 1, step do
    add(place_from_front, redis.call('lindex', list, -1 - place_from_front))
  end
  reply[i] = entry
end
return reply
