#!lua
-- Purpose: prolong or give back the leases, and the rights to refresh, that a reader still
--   holds; anything else stays as it is. A value whose refresh is given back stays for all.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     tag (16 characters)
--       2     token (text without ':')
--       3     milliseconds to live from now (integer), or 0 to give back
-- Reply: how many were still held
-- Cost: O(n)
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local back, held = ARGV[3] == '0', 0
local lease = 'L' .. ARGV[1] .. ARGV[2]
local refresh = 'R' .. ARGV[1] .. ARGV[2] .. ':'
for i = 1, #KEYS do
  local key = KEYS[i]
  local pointer = redis.call('GET', key)
  if pointer == lease then
    held = held + 1
    if back then
      redis.call('DEL', key)
    else
      redis.call('PEXPIRE', key, ARGV[3])
    end
  elseif pointer and string.sub(pointer, 1, #refresh) == refresh then
    local until_ms, version = string.match(pointer, '(%d+):(.*)', #refresh + 1)
    if tonumber(until_ms) > now then
      held = held + 1
      local after = back and 'V' .. ARGV[1] .. version
        or refresh .. string.format('%.0f:', now + tonumber(ARGV[3])) .. version
      redis.call('SET', key, after, 'KEEPTTL')
    end
  end
end
return held
