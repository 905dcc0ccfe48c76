#!lua
-- Purpose: prolong or give back the leases a reader still holds; anything else stays as it is.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     tag (16 characters)
--       2     token (text)
--       3     milliseconds to live from now (integer), or 0 to give the lease back
-- Reply: how many were still held
-- Cost: O(n)
-- Server: Redis 7.0, Valkey 7.2
local mine, held = 'L' .. ARGV[1] .. ARGV[2], 0
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == mine then
    held = held + 1
    if ARGV[3] == '0' then
      redis.call('DEL', KEYS[i])
    else
      redis.call('PEXPIRE', KEYS[i], ARGV[3])
    end
  end
end
return held
