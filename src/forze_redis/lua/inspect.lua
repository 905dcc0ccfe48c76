#!lua flags=no-writes
-- Purpose: what a pointer says, and what there is of the body it names, changing nothing: no
--   lease is taken, no life prolonged.
-- KEYS: 1     pointer key (string)
-- ARGV: none
-- Reply: an array of the pointer (bulk string), the milliseconds it has left, the server's clock
--        in milliseconds and, where it names a body that is there, the body's size in bytes and
--        the milliseconds that has left; null where there is no pointer
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
local key = KEYS[1]
local pointer = redis.call('GET', key)
if not pointer then return false end
local t = redis.call('TIME')
local answer = {pointer, redis.call('PTTL', key), t[1] * 1000 + math.floor(t[2] / 1000)}
local state, version = string.byte(pointer), nil
if state == 86 then version = string.sub(pointer, 18) end -- V
if state == 82 then version = string.match(pointer, ':%d+:(.*)', 18) end -- R
if version then
  local slash = string.find(key, '/', 1, true)
  local place = string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15)
    .. '/' .. version
  local left = redis.call('PTTL', place)
  if left ~= -2 then
    answer[4], answer[5] = redis.call('STRLEN', place), left
  end
end
return answer
