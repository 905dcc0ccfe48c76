#!lua
-- Purpose: say that these still wait for a permit, skip whoever did not say so in time, and call
--   whoever is next if there is a permit.
-- KEYS: 1     holders (zset: owner -> end of its lease, microseconds)
--       2     tokens (zset: owner -> token)
--       3     queue (zset: owner -> ticket)
--       4     waiting (zset: owner -> when it counts as gone, microseconds)
--       5     channel (no key, and named so that it stands in their slot); whoever is called is
--             told on the channel of its process: this with the 2nd to 9th character of its name
-- ARGV: 1     permits (integer > 0)
--       2     milliseconds until who waits counts as gone unless it says so again (integer > 0)
--       3..n  owners that wait, in the order in which they came
-- Reply: {milliseconds until a lease ends, 0 if there is a permit; owners whose turn it is}
-- Cost: O(n log m), n owners of m who hold or wait
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local holders, tokens, queue, waiting, channel = unpack(KEYS)
local wait = tonumber(ARGV[2])
local stamp = string.format('%.0f', now)
local deadline = string.format('%.0f', now + wait * 1000)

local function drop(members, beside) -- what has lapsed, from both
  if redis.call('EXISTS', members) == 0 then redis.call('DEL', beside) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', stamp)) do
    redis.call('ZREM', members, id)
    redis.call('ZREM', beside, id)
  end
end
drop(waiting, queue)
drop(holders, tokens)
for i = 3, #ARGV do
  local id = ARGV[i]
  if not redis.call('ZSCORE', holders, id) then
    if not redis.call('ZSCORE', queue, id) then
      local tail = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')
      redis.call('ZADD', queue, tonumber(tail[2] or '0') + 1, id)
    end
    redis.call('ZADD', waiting, deadline, id)
  end
end
for _, key in ipairs({queue, waiting}) do
  if redis.call('PTTL', key) < wait then redis.call('PEXPIRE', key, wait) end
end

local free = tonumber(ARGV[1]) - redis.call('ZCARD', holders)
if free < 1 then
  local soonest = redis.call('ZRANGE', holders, 0, 0, 'WITHSCORES')
  return {math.ceil((tonumber(soonest[2]) - now) / 1000)}
end
local called = redis.call('ZRANGE', queue, 0, free - 1)
for _, id in ipairs(called) do
  redis.call('SPUBLISH', channel .. string.sub(id, 2, 9), id)
end
table.insert(called, 1, 0)
return called
