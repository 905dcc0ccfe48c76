#!lua
-- Purpose: count the permits of a semaphore that are taken; writes nothing.
-- KEYS: 1     holders (zset: owner -> end of its lease, microseconds)
-- ARGV: none
-- Reply: how many leases live
-- Cost: O(log n) in the holders
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[1], string.format('(%.0f', t[1] * 1000000 + t[2]), '+inf')
