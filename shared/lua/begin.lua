-- A waiting job runs from now on. KEYS: owner's waiting, owner's running. ARGV: job id, ttl.
begin(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
