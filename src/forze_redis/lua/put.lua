#!lua
-- Purpose: store versioned values directly: never over a write in flight, never over a higher
--   numeric version of the same generation; a reader's lease is destroyed.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     tag (16 characters)
--       2     life in milliseconds (integer > 0)
--       then for each key: version (encoded text), value (bytes)
-- Reply: array of n: 1 stored, 0 refused
-- Cost: O(n) plus the values
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local tag, life, stored = ARGV[1], ARGV[2], {}

local function version_of(pointer) -- nil where it names no body
  local state = string.byte(pointer)
  if state == 86 then return string.sub(pointer, 18) end -- V
  if state == 82 then return string.match(pointer, ':%d+:(.*)', 18) end -- R
end

local function lower(version, other)
  if not (string.match(version, '^%d+$') and string.match(other, '^%d+$')) then return false end
  version, other = string.gsub(version, '^0+', ''), string.gsub(other, '^0+', '')
  if #version ~= #other then return #version < #other end
  return version < other
end

for i = 1, #KEYS do
  local key, version, refused = KEYS[i], ARGV[2 * i + 1], false
  local slash = string.find(key, '/', 1, true)
  local bodies = string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15) .. '/'
  local pointer = redis.call('GET', key)
  if pointer then
    if string.byte(pointer) == 73 then
      for other in string.gmatch(pointer, ':(%d+)') do
        refused = refused or tonumber(other) > now
      end
    else
      local current = version_of(pointer)
      refused = current and string.sub(pointer, 2, 9) == string.sub(tag, 1, 8)
        and lower(version, current) and redis.call('EXISTS', bodies .. current) == 1
      if current and not refused and current ~= version then
        redis.call('UNLINK', bodies .. current)
      end
    end
  end
  stored[i] = 0
  if not refused then
    redis.call('SET', bodies .. version, ARGV[2 * i + 2], 'PX', life)
    redis.call('SET', key, 'V' .. tag .. version, 'PX', life)
    stored[i] = 1
  end
end
return stored
