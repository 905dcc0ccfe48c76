#!lua
-- Purpose: let a lease last for another term, if it still stands.
-- KEYS: 1     entry (string: a body, or the lease '!token')
-- ARGV: 1     lease ('!token', text)
--       2     term in milliseconds (integer, 1 or more)
-- Reply: 1 extended, 0 the lease is gone
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
