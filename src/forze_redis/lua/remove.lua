#!lua
-- Purpose: remove whatever `get` would find, versioned and plain; writes in flight stay announced.
-- KEYS: 1..2n pairs of pointer key and plain key (strings), at most 100 pairs, one slot
-- ARGV: 1     '1' to remove the body of a versioned value too, '0' to let it expire
-- Reply: array of n: 1 if there was a value, else 0
-- Cost: O(n)
--   A body that cannot be removed (its slot is moving to another node) expires; nothing names it.
-- Server: Redis 7.0, Valkey 7.2
local function version_of(pointer) -- nil where it names no body
  local state = string.byte(pointer)
  if state == 86 then return string.sub(pointer, 18) end -- V
  if state == 82 then return string.match(pointer, ':%d+:(.*)', 18) end -- R
end

local command, removed = ARGV[1] == '1' and 'UNLINK' or 'EXISTS', {}
for i = 1, #KEYS, 2 do
  local key, there = KEYS[i], 0
  local pointer = redis.call('GET', key)
  if pointer and string.byte(pointer) ~= 73 then
    local version = version_of(pointer)
    if version then
      local slash = string.find(key, '/', 1, true)
      local found = redis.pcall(command, string.sub(key, 1, slash) .. 'cache/body/'
        .. string.sub(key, slash + 15) .. '/' .. version)
      if found == 1 then there = 1 end
    end
    redis.call('DEL', key)
  end
  if redis.call('UNLINK', KEYS[i + 1]) == 1 then there = 1 end
  removed[(i + 1) / 2] = there
end
return removed
