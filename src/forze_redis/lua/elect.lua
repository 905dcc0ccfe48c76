#!lua
-- Purpose: give one reader the right to refresh a current value early; the value stays for all.
-- KEYS: 1     pointer key (string)
-- ARGV: 1     tag (16 characters)
--       2     token (text without ':')
--       3     milliseconds until the right lapses (integer > 0)
-- Reply: 1 elected, 0 not (no value under this tag, or another reader is refreshing it)
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
local key, tag = KEYS[1], ARGV[1]
local pointer = redis.call('GET', key)
if not pointer or string.sub(pointer, 2, 17) ~= tag then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local state, version = string.byte(pointer), string.sub(pointer, 18)
if state == 82 then -- R
  local until_ms
  until_ms, version = string.match(version, ':(%d+):(.*)')
  if tonumber(until_ms) > now then return 0 end
elseif state ~= 86 then -- V
  return 0
end
local slash = string.find(key, '/', 1, true)
if redis.call('EXISTS', string.sub(key, 1, slash) .. 'cache/body/'
  .. string.sub(key, slash + 15) .. '/' .. version) == 0 then
  return 0
end
redis.call('SET', key, 'R' .. tag .. ARGV[2]
  .. string.format(':%.0f:', now + tonumber(ARGV[3])) .. version, 'KEEPTTL')
return 1
