-- Give the lower classes of a model a turn: the next message of a class that has waited for the
-- whole interval moves to the first list.
-- KEYS: the model's turns, then its lists. ARGV: the interval in seconds.
local turns, first = KEYS[1], KEYS[2]
local interval, time = tonumber(ARGV[1]), redis.call('time')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local moved = 0
for i = 4, #KEYS do
  local field = 'due:' .. i - 1
  if redis.call('llen', KEYS[i]) == 0 then
    redis.call('hdel', turns, field)
  else
    local due = tonumber(redis.call('hget', turns, field) or -1)
    if due >= 0 and now >= due then
      redis.call('lmove', KEYS[i], first, 'RIGHT', 'LEFT')
      moved = moved + 1
    end
    if due < 0 or now >= due then redis.call('hset', turns, field, now + interval) end
  end
end
if moved > 0 then redis.call('expire', turns, 3600) end
return moved
