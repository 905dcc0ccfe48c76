#!lua
-- Purpose: have a lock, alone or shared with readers, for a lease; or stand in line for it. The
--   same owner again has its lease extended and the same token. A refusal writes nothing.
-- KEYS: 1     lock (string: owner|token, with the lease as its TTL)
--       2     fence (string, no TTL): the last token of this lock
--       3     readers (zset: owner -> end of its lease, microseconds)
--       4     queue (zset: owner -> ticket); whoever reads has an owner that begins with 'r'
--       5     waiting (zset: owner -> when it counts as gone, microseconds)
-- ARGV: 1     owner (text)
--       2     '1' shared, '0' alone
--       3     lease in milliseconds (integer > 0)
--       4     milliseconds until who waits counts as gone unless it says so again; '0': do not wait
-- Reply: {1, token} granted; {0, milliseconds until the lease in the way ends, 0 if none is} not
-- Cost: O(log n) in those who wait, shared O(n); the fence of a lock remains, one small key
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local stamp = string.format('%.0f', now)
local lock, fence, readers, queue, waiting = unpack(KEYS)
local owner, shared, lease = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])

local crowd = redis.call('EXISTS', readers, queue, waiting) > 0 -- else it is alone with its holder
if crowd then
  if redis.call('EXISTS', waiting) == 0 then redis.call('DEL', queue) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, '-inf', stamp)) do
    redis.call('ZREM', queue, id)
    redis.call('ZREM', waiting, id)
  end
  redis.call('ZREMRANGEBYSCORE', readers, '-inf', stamp)
end

local function outlast(key, milliseconds) -- a key lives as long as what is in it
  if redis.call('PTTL', key) < milliseconds then redis.call('PEXPIRE', key, milliseconds) end
end

local function read() -- this owner among the readers, until a lease from now
  redis.call('ZADD', readers, 'GT', string.format('%.0f', now + lease * 1000), owner)
  outlast(readers, lease)
end

local value = redis.call('GET', lock)
local last = tonumber(redis.call('GET', fence) or '0')
local holder, token
if value then holder, token = string.match(value, '^(.*)|(%d+)$') end
if shared and crowd and redis.call('ZSCORE', readers, owner) then
  read()
  return {1, last}
elseif not shared and holder == owner then
  outlast(lock, lease)
  return {1, tonumber(token)}
end

local function first() -- nobody who waits has to go before
  if not crowd then return true end
  if not shared then
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    return not head or head == owner
  end
  for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if id == owner then return true end
    if string.byte(id) ~= 114 then return false end -- r
  end
  return true
end

local reading = crowd and redis.call('ZRANGE', readers, -1, -1, 'WITHSCORES') or {}
if value or (reading[1] and not shared) or not first() then
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
  if value then return {0, redis.call('PTTL', lock) + 1} end
  if reading[1] and not shared then
    return {0, math.ceil((tonumber(reading[2]) - now) / 1000)}
  end
  return {0, 0}
end

local granted = last
if not shared then
  granted = now > last and now or last + 1
  redis.call('SET', fence, string.format('%.0f', granted))
end
if crowd then
  redis.call('ZREM', queue, owner)
  redis.call('ZREM', waiting, owner)
end
if shared then
  read()
else
  redis.call('SET', lock, owner .. '|' .. string.format('%.0f', granted), 'PX', lease)
end
return {1, granted}
