#!lua
-- Purpose: give a lease back, leave the line, and call whoever is next; nobody else's is touched.
-- KEYS: 1     lock (string: owner|token, with the lease as its TTL)
--       2     readers (zset: owner -> end of its lease, microseconds)
--       3     queue (zset: owner -> ticket); whoever reads has an owner that begins with 'r'
--       4     waiting (zset: owner -> when it counts as gone, microseconds)
--       5     channel (no key, and named so that it stands in their slot); whoever is called is
--             told on the channel of its process: this with the 2nd to 9th character of its name
-- ARGV: 1     owner (text)
--       2     token (integer), '' for whichever the owner has
--       3     '1' shared, '0' alone
-- Reply: 1 the owner had the lease, 0 it had none
-- Cost: O(log n) in those who wait
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local stamp = string.format('%.0f', t[1] * 1000000 + t[2])
local lock, readers, queue, waiting, channel = unpack(KEYS)
local owner, shared = ARGV[1], ARGV[3] == '1'

local crowd = redis.call('EXISTS', readers, queue, waiting) > 0 -- else it is alone with its holder
if crowd then
  if redis.call('EXISTS', waiting) == 0 then redis.call('DEL', queue) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, '-inf', stamp)) do
    redis.call('ZREM', queue, id)
    redis.call('ZREM', waiting, id)
  end
  redis.call('ZREMRANGEBYSCORE', readers, '-inf', stamp)
end
local holder, token = string.match(redis.call('GET', lock) or '', '^(.*)|(%d+)$')
local held = 0
if shared then
  held = crowd and redis.call('ZREM', readers, owner) or 0
elseif holder == owner and (ARGV[2] == '' or token == ARGV[2]) then
  held = redis.call('DEL', lock)
end
if not crowd then return held end
local waited = redis.call('ZREM', queue, owner)
redis.call('ZREM', waiting, owner)
if held + waited == 0 or redis.call('EXISTS', lock) == 1 then return held end

local called, head = {}, redis.call('ZRANGE', queue, 0, 0)[1]
if head and string.byte(head) ~= 114 then -- r
  if redis.call('ZCARD', readers) == 0 then called[1] = head end
elseif head then
  for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if string.byte(id) ~= 114 then break end
    called[#called + 1] = id
  end
end
for _, id in ipairs(called) do
  redis.call('SPUBLISH', channel .. string.sub(id, 2, 9), id)
end
return held
