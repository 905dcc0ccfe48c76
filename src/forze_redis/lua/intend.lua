#!lua
-- Purpose: announce or renew a write: what was cached, and every lease, is destroyed; until the
--   write is done (or its deadline has passed) no reader hits or fills.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     write id (text without ':' and ';')
--       2     milliseconds until this id lapses (integer > 0)
-- Reply: OK
-- Cost: O(n) plus the writers in flight per key
--   A body that cannot be removed (its slot is moving to another node) expires; nothing names it.
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local mine, deadline = ARGV[1], now + tonumber(ARGV[2])
local alone = string.format('%s:%.0f;', mine, deadline)

for i = 1, #KEYS do
  local key = KEYS[i]
  local pointer = redis.call('SET', key, 'I;' .. alone, 'PX', ARGV[2], 'GET')
  local state = pointer and string.byte(pointer)
  if state == 73 then -- I: the ids of other writers stay
    local ids, last = '', deadline
    for id, other in string.gmatch(pointer, '([^:;]+):(%d+);') do
      other = tonumber(other)
      if id ~= mine and other > now then
        ids = ids .. id .. string.format(':%.0f;', other)
        if other > last then last = other end
      end
    end
    if ids ~= '' then
      redis.call('SET', key, 'I;' .. ids .. alone, 'PX', string.format('%.0f', last - now))
    end
  elseif state == 86 or state == 82 then -- V, R: the body they name goes
    local version = string.sub(pointer, 18)
    if state == 82 then version = string.match(version, ':%d+:(.*)') end
    local slash = string.find(key, '/', 1, true)
    redis.pcall('UNLINK', string.sub(key, 1, slash) .. 'cache/body/'
      .. string.sub(key, slash + 15) .. '/' .. version)
  end
end
return redis.status_reply('OK')
