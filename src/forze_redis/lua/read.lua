#!lua
-- Purpose: the body a pointer names, in one round trip; where nothing is there, leave a lease.
--   Declared as a writer (no `no-writes` flag) on purpose: a server that refuses writes (out of
--   memory, read-only, too few replicas) could not be told of an invalidation either, so it
--   must not answer a hit.
-- KEYS: 1..n  pointer keys (string), at most 100, one slot
-- ARGV: 1     tag (16 characters: generation and schema)
--       2     token for the lease (text, 1-64 characters), or '' to take none
--       3     lease time in milliseconds (integer, 1-60000)
--       4     largest body to answer, in bytes (integer); 0 for any
-- Reply: for one key its answer, for several an array of answers:
--        the body (bulk string), or 1 lease taken, 2 held by another reader,
--        3 writes in flight, 4 body larger than ARGV[4], 5 nothing there (no token given)
-- Cost: O(n) plus the bodies. The body key is derived from its pointer and stands in its slot.
-- Server: Redis 7.0, Valkey 7.2
local tag, token, limit = ARGV[1], ARGV[2], tonumber(ARGV[4])

local function live_intent(pointer)
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  for deadline in string.gmatch(pointer, ':(%d+)') do
    if tonumber(deadline) > now then return true end
  end
  return false
end

local function look(key)
  local pointer = redis.call('GET', key)
  if pointer then
    local state = string.byte(pointer)
    if state == 73 then -- I
      if live_intent(pointer) then return 3 end
    elseif string.sub(pointer, 2, 17) == tag then
      if state == 76 then return 2 end -- L
      if state == 86 then -- V
        local slash = string.find(key, '/', 1, true)
        local body = redis.call('GET', string.sub(key, 1, slash) .. 'cache/body/'
          .. string.sub(key, slash + 15) .. '/' .. string.sub(pointer, 18))
        if body then
          if limit > 0 and #body > limit then return 4 end
          return body
        end
      end
    end
  end
  if token == '' then return 5 end
  redis.call('SET', key, 'L' .. tag .. token, 'PX', ARGV[3])
  return 1
end

if #KEYS == 1 then return look(KEYS[1]) end
local answers = {}
for i = 1, #KEYS do answers[i] = look(KEYS[i]) end
return answers
