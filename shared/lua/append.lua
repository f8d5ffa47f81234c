-- Append events to the logs of their jobs, and publish messages.
-- KEYS: lease and log of each event, then the channels.
-- ARGV: number of events; of each one the lease that it needs, its sequence number, the event, the
--       log's new ttl (0 = none) and the numbers of its channels; then a message for each channel.
-- Returns the receivers of each channel and the numbers of the refused events.
local n, counts, refused, blocked = tonumber(ARGV[1]), {}, {}, {}
for i = 1, n do
  local lease, log, at = KEYS[2 * i - 1], KEYS[2 * i], 5 * i - 3
  local holder = redis.call('get', lease)
  -- A lease that is not there is no other's.
  if holder ~= false and holder ~= ARGV[at] then
    refused[#refused + 1] = i
    -- The channel of a refused event gets no message: its readers repair from the logs.
    for place in string.gmatch(ARGV[at + 4], '%d+') do blocked[tonumber(place)] = true end
  elseif redis.call('llen', log) <= tonumber(ARGV[at + 1]) then
    -- Otherwise the event is there already, from a call whose answer was lost.
    redis.call('rpush', log, ARGV[at + 2])
    if ARGV[at + 3] ~= '0' then redis.call('expire', log, ARGV[at + 3]) end
  end
end
for c = 1, #KEYS - 2 * n do
  if blocked[c] then counts[c] = 1
  else counts[c] = redis.call('publish', KEYS[2 * n + c], ARGV[1 + 5 * n + c]) end
end
return { counts, refused }
