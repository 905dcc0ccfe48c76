#!lua flags=allow-oom
-- Purpose: free a key that its owner still holds, and tell those that wait. What is left keeps
--   the generation, so that it rises from run to run.
-- KEYS: 1     record (hash)
-- ARGV: 1     owner (text)
--       2     generation (integer > 0), or 0 for whichever the owner has
--       3     milliseconds the generation is kept (integer > 0)
-- Reply: 1, or 0 where the claim is not the owner's
-- Cost: O(1); works on a server that is out of memory, where it only frees. Publishes on the
--   sharded channel {record}:changed.
-- Server: Redis 7.0, Valkey 7.2
local key = KEYS[1]
local r = redis.call('HMGET', key, 'state', 'owner', 'generation')
if r[1] ~= 'pending' or r[2] ~= ARGV[1] then return 0 end
if ARGV[2] ~= '0' and r[3] ~= ARGV[2] then return 0 end
redis.call('HDEL', key, 'owner', 'payload', 'lease')
redis.call('HSET', key, 'state', 'free')
redis.call('PEXPIRE', key, ARGV[3])
redis.pcall('SPUBLISH', key .. ':changed', 'free') -- what stands, stands unheard too
return 1
