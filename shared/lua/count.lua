-- Add to the counters that the web processes of one gunicorn master share. A batch that is sent
-- again, because its answer was lost, is not added again.
-- KEYS: the counters, the reports of the processes. ARGV: process id, report as JSON, seconds to
-- live, then field and increment in turns. Returns 1 for the first report of a process.
local counters, reports = KEYS[1], KEYS[2]
local process, report = ARGV[1], cjson.decode(ARGV[2])
local known = redis.call('hget', reports, process)
if known and cjson.decode(known).sequence >= report.sequence then return 0 end
-- Before the counters: an error in the middle must not have the batch added again and again.
redis.call('hset', reports, process, ARGV[2])
redis.call('expire', reports, ARGV[3])
for i = 4, #ARGV, 2 do redis.call('hincrbyfloat', counters, ARGV[i], ARGV[i + 1]) end
if not known then
  -- Processes that ended long ago: none of them repeats a batch any more.
  local all = redis.call('hgetall', reports)
  for i = 1, #all, 2 do
    if report.at - cjson.decode(all[i + 1]).at > 3600 then redis.call('hdel', reports, all[i]) end
  end
end
redis.call('expire', counters, ARGV[3])
return known and 0 or 1
