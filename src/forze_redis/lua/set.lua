#!lua
-- Purpose: store plain values; a versioned value (or lease) under the same key is invalidated,
--   writes in flight stay announced.
-- KEYS: 1..2n pairs of pointer key and plain key (strings), at most 100 pairs, one slot
-- ARGV: 1     life in milliseconds (integer > 0)
--       then for each pair: value (bytes)
-- Reply: OK
-- Cost: O(n) plus the values
-- Server: Redis 7.0, Valkey 7.2
for i = 1, #KEYS, 2 do
  local key = KEYS[i]
  local pointer = redis.call('GET', key)
  if pointer and string.byte(pointer) ~= 73 then
    if string.byte(pointer) == 86 then
      local slash = string.find(key, '/', 1, true)
      redis.call('UNLINK', string.sub(key, 1, slash) .. 'cache/body/'
        .. string.sub(key, slash + 15) .. '/' .. string.sub(pointer, 18))
    end
    redis.call('DEL', key)
  end
  redis.call('SET', KEYS[i + 1], ARGV[(i + 1) / 2 + 1], 'PX', ARGV[1])
end
return redis.status_reply('OK')
