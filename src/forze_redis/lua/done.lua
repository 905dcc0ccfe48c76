#!lua
-- Purpose: end a write: remove its id; the last one out leaves nothing. If the id is gone already
--   (lapsed, evicted, flushed) the key is invalidated all the same, other writers' ids stay.
--   With an id that never was there it is a plain invalidation.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     write id (text without ':' and ';')
-- Reply: OK
-- Cost: O(n) plus the writers in flight per key
--   A body that cannot be removed (its slot is moving to another node) expires; nothing names it.
-- Server: Redis 7.0, Valkey 7.2
local mine = 'I;' .. ARGV[1] .. ':'

for i = 1, #KEYS do
  local key = KEYS[i]
  local pointer = redis.call('GETDEL', key)
  local state = pointer and string.byte(pointer)
  local alone = state == 73 and string.sub(pointer, 1, #mine) == mine
    and string.find(pointer, ';', #mine, true) == #pointer
  if state == 73 and not alone then -- I: the ids of other writers stay
    local t = redis.call('TIME')
    local now, ids, last = t[1] * 1000 + math.floor(t[2] / 1000), '', 0
    for id, other in string.gmatch(pointer, '([^:;]+):(%d+);') do
      other = tonumber(other)
      if id ~= ARGV[1] and other > now then
        ids = ids .. id .. string.format(':%.0f;', other)
        if other > last then last = other end
      end
    end
    if ids ~= '' then
      redis.call('SET', key, 'I;' .. ids, 'PX', string.format('%.0f', last - now))
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
