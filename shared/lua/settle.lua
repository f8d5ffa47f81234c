-- A job neither waits nor runs any more.
-- KEYS: owner's waiting, owner's running, owner's rates. ARGV: job id, refund of tokens.
settle(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
