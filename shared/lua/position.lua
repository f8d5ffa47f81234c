-- How many messages are before each of some in a model's queue; -1 = it does not wait any more.
-- KEYS: the model's lists. ARGV: for each message the place of its list, its tag and number.
local lengths, before = {}, {}
local total = 0
for i, list in ipairs(KEYS) do
  lengths[i], before[i] = redis.call('llen', list), total
  total = total + lengths[i]
end
local positions = {}
for i = 1, #ARGV, 3 do
  local place_of_list = tonumber(ARGV[i])
  local index = index_of(KEYS[place_of_list], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]))
  positions[#positions + 1] =
    index and (before[place_of_list] + lengths[place_of_list] - index - 1) or -1
end
return positions
