#!lua
-- Purpose: store one large body if its reader's lease, or right to refresh, still stands, on a
--   connection of its own. That connection may have reached another server than the one that
--   gave the lease, so the server is asked for its generation in the same script.
-- KEYS: 1     pointer key (string)
-- ARGV: 1     tag (16 characters: generation and schema); generation '00000000' is not checked
--       2     token (text without ':')
--       3     version (text)
--       4     body (bytes)
--       5     life in milliseconds (integer > 0)
--       6     milliseconds of it without a read (integer); 0: all of it
-- Reply: 1 stored, 0 refused
-- Cost: O(1) plus the body and INFO
-- Server: Redis 7.0, Valkey 7.2
local key, tag, version, life, window = KEYS[1], ARGV[1], ARGV[3], ARGV[5], ARGV[6]
local generation = string.sub(tag, 1, 8)
if generation ~= '00000000'
  and string.match(redis.call('INFO', 'replication'), 'master_replid:(........)') ~= generation then
  return 0
end

local function lower(version, other)
  if not (string.match(version, '^%d+$') and string.match(other, '^%d+$')) then return false end
  version, other = string.gsub(version, '^0+', ''), string.gsub(other, '^0+', '')
  if #version ~= #other then return #version < #other end
  return version < other
end

local slash = string.find(key, '/', 1, true)
local bodies = string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15) .. '/'
local pointer = redis.call('GET', key)
if pointer ~= 'L' .. tag .. ARGV[2] then
  local holder = 'R' .. tag .. ARGV[2] .. ':'
  if not pointer or string.sub(pointer, 1, #holder) ~= holder then return 0 end
  local until_ms, current = string.match(pointer, '(%d+):(.*)', #holder + 1)
  local t = redis.call('TIME')
  if tonumber(until_ms) <= t[1] * 1000 + math.floor(t[2] / 1000) then return 0 end
  if lower(version, current) then return 0 end
  if current ~= version then redis.call('UNLINK', bodies .. current) end
end
if window == '0' or tonumber(window) > tonumber(life) then window = life end
redis.call('SET', bodies .. version, ARGV[4], 'PX', window)
redis.call('SET', key, 'V' .. tag .. version, 'PX', life)
return 1
