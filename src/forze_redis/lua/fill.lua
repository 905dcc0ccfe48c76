#!lua
-- Purpose: store loaded bodies, each only if its reader's lease, or right to refresh, still
--   stands. A refresh never lowers a numeric version; a body of another one goes.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     tag (16 characters)
--       then for each key: token (text without ':'), version (text), body (bytes),
--       life in milliseconds (integer > 0), and of it without a read (integer; 0: all of it)
-- Reply: array of n: 1 stored, 0 refused (nothing is held, or under another tag)
-- Cost: O(n) plus the bodies
-- Server: Redis 7.0, Valkey 7.2
local tag, stored = ARGV[1], {}

local function lower(version, other)
  if not (string.match(version, '^%d+$') and string.match(other, '^%d+$')) then return false end
  version, other = string.gsub(version, '^0+', ''), string.gsub(other, '^0+', '')
  if #version ~= #other then return #version < #other end
  return version < other
end

local function refreshed(pointer, token, version) -- the version it replaces, nil if it may not
  local holder = 'R' .. tag .. token .. ':'
  if string.sub(pointer, 1, #holder) ~= holder then return nil end
  local until_ms, current = string.match(pointer, '(%d+):(.*)', #holder + 1)
  local t = redis.call('TIME')
  if tonumber(until_ms) <= t[1] * 1000 + math.floor(t[2] / 1000) then return nil end
  if not lower(version, current) then return current end
end

for i = 1, #KEYS do
  local key, at = KEYS[i], 5 * i - 3
  local token, version, life, window = ARGV[at], ARGV[at + 1], ARGV[at + 3], ARGV[at + 4]
  local pointer = redis.call('GET', key)
  local leased = pointer == 'L' .. tag .. token
  local current = pointer and not leased and refreshed(pointer, token, version)
  stored[i] = 0
  if leased or current then
    local slash = string.find(key, '/', 1, true)
    local bodies = string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15) .. '/'
    if current and current ~= version then redis.call('UNLINK', bodies .. current) end
    if window == '0' or tonumber(window) > tonumber(life) then window = life end
    redis.call('SET', bodies .. version, ARGV[at + 2], 'PX', window)
    redis.call('SET', key, 'V' .. tag .. version, 'PX', life)
    stored[i] = 1
  end
end
return stored
