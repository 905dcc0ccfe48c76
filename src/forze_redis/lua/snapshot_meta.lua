#!lua
-- Purpose: say what is known of a run.
-- KEYS: 1     the run (string)
--       2     its writers (hash), of the same slot
-- ARGV: none
-- Reply: {header, fingerprint, milliseconds left} of a run; 1 where one is being written, or was
--        left halfway; 0 where there is neither
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
local head = redis.call('GETRANGE', KEYS[1], 0, 21)
if head == '' then return redis.call('EXISTS', KEYS[2]) end
local named = tonumber(string.sub(head, 17)) or 0
local fingerprint = named > 0 and redis.call('GETRANGE', KEYS[1], 22, 21 + named) or ''
return { head, fingerprint, redis.call('PTTL', KEYS[1]) }
