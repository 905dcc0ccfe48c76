#!lua
-- Purpose: give a lease back without a value, so that somebody else makes one.
-- KEYS: 1     entry (string: a body, or the lease '!token')
-- ARGV: 1     lease ('!token', text)
-- Reply: 1 released, 0 the lease was gone
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
