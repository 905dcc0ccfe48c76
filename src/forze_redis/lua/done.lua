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
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local function version_of(pointer) -- nil where it names no body
  local state = string.byte(pointer)
  if state == 86 then return string.sub(pointer, 18) end -- V
  if state == 82 then return string.match(pointer, ':%d+:(.*)', 18) end -- R
end

for i = 1, #KEYS do
  local key = KEYS[i]
  local pointer = redis.call('GET', key)
  if pointer then
    local state, ids, last = string.byte(pointer), '', 0
    if state == 73 then
      for id, other in string.gmatch(pointer, '([^:;]+):(%d+);') do
        other = tonumber(other)
        if id ~= ARGV[1] and other > now then
          ids = ids .. id .. string.format(':%.0f;', other)
          if other > last then last = other end
        end
      end
    else
      local version = version_of(pointer)
      if version then
        local slash = string.find(key, '/', 1, true)
        redis.pcall('UNLINK', string.sub(key, 1, slash) .. 'cache/body/'
          .. string.sub(key, slash + 15) .. '/' .. version)
      end
    end
    if ids == '' then
      redis.call('DEL', key)
    else
      redis.call('SET', key, 'I;' .. ids, 'PX', string.format('%.0f', last - now))
    end
  end
end
return redis.status_reply('OK')
