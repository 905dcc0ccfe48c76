#!lua
-- Purpose: say that these still wait for a lock, skip whoever did not say so in time, and call
--   whoever is next if the lock is to be had.
-- KEYS: 1     lock (string: owner|token, with the lease as its TTL)
--       2     readers (zset: owner -> end of its lease, microseconds)
--       3     queue (zset: owner -> ticket); whoever reads has an owner that begins with 'r'
--       4     waiting (zset: owner -> when it counts as gone, microseconds)
--       5     channel (no key, and named so that it stands in their slot); whoever is called is
--             told on the channel of its process: this with the 2nd to 9th character of its name
-- ARGV: 1     milliseconds until who waits counts as gone unless it says so again (integer > 0)
--       2..n  owners that wait, in the order in which they came
-- Reply: {milliseconds until the lease in the way ends, 0 if none is; owners whose turn it is}
-- Cost: O(n log m), n owners of m who wait
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local lock, readers, queue, waiting, channel = unpack(KEYS)
local wait = tonumber(ARGV[1])
local stamp = string.format('%.0f', now)
local deadline = string.format('%.0f', now + wait * 1000)

if redis.call('EXISTS', waiting) == 0 then redis.call('DEL', queue) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, '-inf', stamp)) do
  redis.call('ZREM', queue, id)
  redis.call('ZREM', waiting, id)
end
redis.call('ZREMRANGEBYSCORE', readers, '-inf', stamp)
local value = redis.call('GET', lock)
local holder = value and string.match(value, '^(.*)|%d+$')
for i = 2, #ARGV do
  local id = ARGV[i]
  if id ~= holder and not redis.call('ZSCORE', readers, id) then
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
if value then return {redis.call('PTTL', lock) + 1} end

local called, head = {}, redis.call('ZRANGE', queue, 0, 0)[1]
if head and string.byte(head) ~= 114 then -- r
  local reading = redis.call('ZRANGE', readers, -1, -1, 'WITHSCORES')
  if reading[1] then return {math.ceil((tonumber(reading[2]) - now) / 1000)} end
  called[1] = head
elseif head then
  for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if string.byte(id) ~= 114 then break end
    called[#called + 1] = id
  end
end
for _, id in ipairs(called) do
  redis.call('SPUBLISH', channel .. string.sub(id, 2, 9), id)
end
table.insert(called, 1, 0)
return called
