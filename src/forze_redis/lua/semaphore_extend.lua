#!lua
-- Purpose: let the lease of a permit that lives end later; one that is gone stays gone.
-- KEYS: 1     holders (zset: owner -> end of its lease, microseconds)
--       2     tokens (zset: owner -> token)
-- ARGV: 1     owner (text)
--       2     milliseconds from now until it ends (integer > 0); it never ends sooner than before
-- Reply: 1 extended, 0 the owner has no permit
-- Cost: O(log n) in the holders
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local holders, tokens = KEYS[1], KEYS[2]
local owner, lease = ARGV[1], tonumber(ARGV[2])
local deadline = tonumber(redis.call('ZSCORE', holders, owner) or '0')
if deadline <= now then return 0 end
redis.call('ZADD', holders, 'GT', string.format('%.0f', now + lease * 1000), owner)
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < lease then redis.call('PEXPIRE', key, lease) end
end
return 1
