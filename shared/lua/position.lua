-- How many messages are before the job's in a model's queue; -1 = it does not wait.
-- KEYS: the model's lists. ARGV: the job's id.
local marks = { '"correlation_id":"' .. ARGV[1] .. '"', '"correlation_id": "' .. ARGV[1] .. '"' }
local before = 0
for _, list in ipairs(KEYS) do
  local messages = redis.call('lrange', list, 0, -1)
  for i = #messages, 1, -1 do
    for _, mark in ipairs(marks) do
      if string.find(messages[i], mark, 1, true) then return before + #messages - i end
    end
  end
  before = before + #messages
end
return -1
