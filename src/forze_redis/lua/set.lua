#!lua
-- Purpose: store plain values; a versioned value (or lease) under the same key is invalidated,
--   writes in flight stay announced.
-- KEYS: 1..2n pairs of pointer key and plain key (strings), at most 100 pairs, one slot
-- ARGV: 1     life in milliseconds (integer > 0)
--       then for each pair: value (bytes)
-- Reply: OK
-- Cost: O(n) plus the values
--   A body that cannot be removed (its slot is moving to another node) expires; nothing names it.
-- Server: Redis 7.0, Valkey 7.2
local function version_of(pointer) -- nil where it names no body
  local state = string.byte(pointer)
  if state == 86 then return string.sub(pointer, 18) end -- V
  if state == 82 then return string.match(pointer, ':%d+:(.*)', 18) end -- R
end

for i = 1, #KEYS, 2 do
  local key = KEYS[i]
  local pointer = redis.call('GET', key)
  if pointer and string.byte(pointer) ~= 73 then
    local version = version_of(pointer)
    if version then
      local slash = string.find(key, '/', 1, true)
      redis.pcall('UNLINK', string.sub(key, 1, slash) .. 'cache/body/'
        .. string.sub(key, slash + 15) .. '/' .. version)
    end
    redis.call('DEL', key)
  end
  redis.call('SET', KEYS[i + 1], ARGV[(i + 1) / 2 + 1], 'PX', ARGV[1])
end
return redis.status_reply('OK')
