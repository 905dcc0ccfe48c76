#!lua
-- Purpose: give a permit back, leave the line, and call whoever is next; nobody else's is touched.
-- KEYS: 1     holders (zset: owner -> end of its lease, microseconds)
--       2     tokens (zset: owner -> token)
--       3     queue (zset: owner -> ticket)
--       4     waiting (zset: owner -> when it counts as gone, microseconds)
--       5     channel (no key, and named so that it stands in their slot); whoever is called is
--             told on the channel of its process: this with the 2nd to 9th character of its name
-- ARGV: 1     owner (text)
--       2     permits (integer > 0)
-- Reply: 1 the owner had a permit, 0 it had none
-- Cost: O(log n) in those who hold or wait
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local stamp = string.format('%.0f', t[1] * 1000000 + t[2])
local holders, tokens, queue, waiting, channel = unpack(KEYS)
local owner = ARGV[1]

local function drop(members, beside) -- what has lapsed, from both
  if redis.call('EXISTS', members) == 0 then redis.call('DEL', beside) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', stamp)) do
    redis.call('ZREM', members, id)
    redis.call('ZREM', beside, id)
  end
end
local crowd = redis.call('EXISTS', queue, waiting) > 0 -- else nobody waits
if crowd then drop(waiting, queue) end
drop(holders, tokens)

local held = redis.call('ZREM', holders, owner)
redis.call('ZREM', tokens, owner)
if not crowd then return held end
local waited = redis.call('ZREM', queue, owner)
redis.call('ZREM', waiting, owner)
local free = tonumber(ARGV[2]) - redis.call('ZCARD', holders)
if held + waited == 0 or free < 1 then return held end
for _, id in ipairs(redis.call('ZRANGE', queue, 0, free - 1)) do
  redis.call('SPUBLISH', channel .. string.sub(id, 2, 9), id)
end
return held
