#!lua
-- Purpose: store loaded bodies, each only if its reader's lease still stands.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     tag (16 characters)
--       then for each key: token (text), version (text), body (bytes), life in milliseconds (integer > 0)
-- Reply: array of n: 1 stored, 0 refused (the lease is gone, or under another tag)
-- Cost: O(n) plus the bodies
-- Server: Redis 7.0, Valkey 7.2
local tag, stored = ARGV[1], {}
for i = 1, #KEYS do
  local key, at = KEYS[i], 4 * i - 2
  stored[i] = 0
  if redis.call('GET', key) == 'L' .. tag .. ARGV[at] then
    local slash = string.find(key, '/', 1, true)
    local version, life = ARGV[at + 1], ARGV[at + 3]
    redis.call('SET', string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15)
      .. '/' .. version, ARGV[at + 2], 'PX', life)
    redis.call('SET', key, 'V' .. tag .. version, 'PX', life)
    stored[i] = 1
  end
end
return stored
