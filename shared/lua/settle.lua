-- A job neither waits nor runs any more; its owner's tokens are set right by what it used. Sent
-- twice, because the first answer was lost, it does so once.
-- KEYS: owner's waiting, owner's running, owner's rates.
-- ARGV: job id, tokens that were taken at its admission less those that it used.
local was_open = redis.call('zrem', KEYS[1], ARGV[1]) + redis.call('zrem', KEYS[2], ARGV[1]) > 0
if was_open and ARGV[2] ~= '0' and redis.call('hexists', KEYS[3], 'tokens') == 1 then
  redis.call('hincrbyfloat', KEYS[3], 'tokens', ARGV[2])
end
