#!lua flags=no-writes
-- Purpose: the value of each key for direct use: a versioned one before a plain one.
-- KEYS: 1..2n pairs of pointer key and plain key (strings), at most 100 pairs, one slot
-- ARGV: 1     generation (8 characters); a versioned value of another one is not there
--       2     largest value to answer, in bytes (integer); 0 for any
-- Reply: array of n: the value (bulk string), null, or 4 (larger than ARGV[2])
-- Cost: O(n) plus the values
-- Server: Redis 7.0, Valkey 7.2
local function version_of(pointer) -- nil where it names no body
  local state = string.byte(pointer)
  if state == 86 then return string.sub(pointer, 18) end -- V
  if state == 82 then return string.match(pointer, ':%d+:(.*)', 18) end -- R
end

local limit, values = tonumber(ARGV[2]), {}
for i = 1, #KEYS, 2 do
  local key, value = KEYS[i], false
  local pointer = redis.call('GET', key)
  local version = pointer and string.sub(pointer, 2, 9) == ARGV[1] and version_of(pointer)
  if version then
    local slash = string.find(key, '/', 1, true)
    value = redis.call('GET', string.sub(key, 1, slash) .. 'cache/body/'
      .. string.sub(key, slash + 15) .. '/' .. version)
  end
  value = value or redis.call('GET', KEYS[i + 1])
  if value and limit > 0 and #value > limit then value = 4 end
  values[(i + 1) / 2] = value
end
return values
