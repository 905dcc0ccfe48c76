#!lua flags=allow-oom
-- Purpose: keep up the lease of a claim; never another's, never one that is no more.
-- KEYS: 1     record (hash)
-- ARGV: 1     owner (text)
--       2     generation (integer > 0)
--       3     lease in milliseconds from now (integer > 0)
--       4     milliseconds the record is kept (integer > 0)
-- Reply: 1, or 0 where the claim is not the owner's any more
-- Cost: O(1); works on a server that is out of memory, where nothing grows
-- Server: Redis 7.0, Valkey 7.2
local key = KEYS[1]
local r = redis.call('HMGET', key, 'state', 'owner', 'generation')
if r[1] ~= 'pending' or r[2] ~= ARGV[1] or r[3] ~= ARGV[2] then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', key, 'lease', string.format('%.0f', now + tonumber(ARGV[3])))
redis.call('PEXPIRE', key, ARGV[4])
return 1
