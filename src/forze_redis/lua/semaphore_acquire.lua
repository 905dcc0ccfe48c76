#!lua
-- Purpose: have one of the permits of a semaphore for a lease, or stand in line for it. The same
--   owner again has its lease extended and the same token. A refusal writes nothing.
-- KEYS: 1     holders (zset: owner -> end of its lease, microseconds)
--       2     tokens (zset: owner -> token)
--       3     fence (string, no TTL): the last token of this semaphore
--       4     queue (zset: owner -> ticket)
--       5     waiting (zset: owner -> when it counts as gone, microseconds)
-- ARGV: 1     owner (text)
--       2     permits (integer > 0)
--       3     lease in milliseconds (integer > 0)
--       4     milliseconds until who waits counts as gone unless it says so again; '0': do not wait
-- Reply: {1, token} granted; {0, milliseconds until a lease ends, 0 if there is a permit} not
-- Cost: O(log n) in those who hold or wait; its fence remains, one small key
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local stamp = string.format('%.0f', now)
local holders, tokens, fence, queue, waiting = unpack(KEYS)
local owner, permits, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

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

local function outlast(key, milliseconds) -- a key lives as long as what is in it
  if redis.call('PTTL', key) < milliseconds then redis.call('PEXPIRE', key, milliseconds) end
end

local function hold(token)
  redis.call('ZADD', tokens, string.format('%.0f', token), owner)
  redis.call('ZADD', holders, 'GT', string.format('%.0f', now + lease * 1000), owner)
  outlast(tokens, lease)
  outlast(holders, lease)
  return {1, token}
end

local last = tonumber(redis.call('GET', fence) or '0')
local mine = tonumber(redis.call('ZSCORE', tokens, owner) or '')
if mine and redis.call('ZSCORE', holders, owner) then return hold(mine) end

local ahead = crowd and (redis.call('ZRANK', queue, owner) or redis.call('ZCARD', queue)) or 0
local free = permits - redis.call('ZCARD', holders)
if free <= ahead then
  local wait = tonumber(ARGV[4])
  if wait > 0 then
    if not redis.call('ZSCORE', queue, owner) then
      local tail = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')
      redis.call('ZADD', queue, tonumber(tail[2] or '0') + 1, owner)
    end
    redis.call('ZADD', waiting, string.format('%.0f', now + wait * 1000), owner)
    outlast(queue, wait)
    outlast(waiting, wait)
  end
  if free > 0 then return {0, 0} end
  local soonest = redis.call('ZRANGE', holders, 0, 0, 'WITHSCORES')
  return {0, math.ceil((tonumber(soonest[2]) - now) / 1000)}
end

local token = now > last and now or last + 1
redis.call('SET', fence, string.format('%.0f', token))
if crowd then
  redis.call('ZREM', queue, owner)
  redis.call('ZREM', waiting, owner)
end
return hold(token)
