#!lua
-- Purpose: let a lease that lives end later, under the same token; one that is gone stays gone.
-- KEYS: 1     lock (string: owner|token, with the lease as its TTL)
--       2     readers (zset: owner -> end of its lease, microseconds)
-- ARGV: 1     owner (text)
--       2     token (integer), '' for whichever the owner has
--       3     '1' shared, '0' alone
--       4     milliseconds from now until it ends (integer > 0); it never ends sooner than before
-- Reply: 1 extended, 0 the owner has no such lease
-- Cost: O(1), shared O(log n) in the readers
-- Server: Redis 7.0, Valkey 7.2
local lock, readers = KEYS[1], KEYS[2]
local owner, lease = ARGV[1], tonumber(ARGV[4])

local function outlast(key)
  if redis.call('PTTL', key) < lease then redis.call('PEXPIRE', key, lease) end
end

if ARGV[3] == '1' then
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  local deadline = tonumber(redis.call('ZSCORE', readers, owner) or '0')
  if deadline <= now then return 0 end
  redis.call('ZADD', readers, 'GT', string.format('%.0f', now + lease * 1000), owner)
  outlast(readers)
  return 1
end
local holder, token = string.match(redis.call('GET', lock) or '', '^(.*)|(%d+)$')
if holder ~= owner or (ARGV[2] ~= '' and token ~= ARGV[2]) then return 0 end
outlast(lock)
return 1
