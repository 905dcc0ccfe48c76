#!lua
-- Purpose: store the answer of an operation and tell those that wait; only by the owner and
--   generation that hold the claim, lapsed or not, and only once: the first answer stays.
-- KEYS: 1     record (hash)
-- ARGV: 1     owner (text)
--       2     generation (integer > 0)
--       3     milliseconds the answer is kept (integer > 0)
--       4     status (integer)
--       5     head (JSON)
--       6     body (bytes)
-- Reply: 1 stored, now or by the same owner before; 0 fenced out
-- Cost: O(1) plus the body. Publishes on the sharded channel {record}:changed.
-- Server: Redis 7.0, Valkey 7.2
local key = KEYS[1]
local r = redis.call('HMGET', key, 'state', 'owner', 'generation')
if r[2] ~= ARGV[1] or r[3] ~= ARGV[2] then return 0 end
if r[1] == 'completed' then return 1 end
redis.call('HDEL', key, 'lease')
redis.call('HSET', key, 'state', 'completed', 'status', ARGV[4], 'head', ARGV[5], 'body', ARGV[6])
redis.call('PEXPIRE', key, ARGV[3])
redis.pcall('SPUBLISH', key .. ':changed', 'completed') -- what stands, stands unheard too
return 1
