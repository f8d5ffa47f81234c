-- An owner's open jobs: each is in its set of waiting or in its set of running ones.

-- A waiting job runs from now on; it expires when it did before.
local function begin(waiting, running, id, ttl)
  local expires_at = redis.call('zscore', waiting, id)
  if not expires_at then return end
  redis.call('zrem', waiting, id)
  redis.call('zadd', running, expires_at, id)
  redis.call('expire', running, ttl)
end

-- A job neither waits nor runs any more; its owner's tokens are corrected by `refund`: what was
-- charged at its admission less what it used. Sent twice, it does so once.
local function settle(waiting, running, rates, id, refund)
  local was_open = redis.call('zrem', waiting, id) + redis.call('zrem', running, id) > 0
  if was_open and refund ~= '0' and redis.call('hexists', rates, 'tokens') == 1 then
    redis.call('hincrbyfloat', rates, 'tokens', refund)
  end
end
