#!lua
-- Purpose: put the value in the place of the lease under which it was made, if that stands.
-- KEYS: 1     entry (string: a body, or the lease '!token')
-- ARGV: 1     lease ('!token', text)
--       2     body (text)
--       3     TTL in milliseconds (integer, 1 or more), '' for none
-- Reply: 1 stored, 0 the lease is gone: it lapsed, or a write came
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == '' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
