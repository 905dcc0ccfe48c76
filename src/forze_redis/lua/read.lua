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
--       5     optional, for sliding lives: milliseconds a body that was hit lives on without
--             another read, its pointer's life at most (integer); 0 for none
--       6     with 5: '1' to be told the life of an entry that may be refreshed early, else '0'
-- Reply: for one key its answer, for several an array of answers:
--        the body (bulk string), or 1 lease taken, 2 held by another reader,
--        3 writes in flight, 4 body larger than ARGV[4], 5 nothing there (no token given);
--        where asked, for a body in an envelope that no reader is refreshing, an array of the
--        body and the milliseconds its pointer has left
-- Cost: O(n) plus the bodies. The body key is derived from its pointer and stands in its slot.
--   A body is prolonged at most once per quarter of ARGV[5]; its pointer is never touched.
-- Server: Redis 7.0, Valkey 7.2
local tag, token, limit = ARGV[1], ARGV[2], tonumber(ARGV[4])

-- What a hit answers where more was asked for than the body. Not in line: most ask for less.
local function hit(key, place, body, refreshing)
  local window = tonumber(ARGV[5])
  local left = window > 0 and redis.call('PTTL', place)
  if left and 4 * left < 3 * window then
    local life = math.min(window, redis.call('PTTL', key))
    if life > left then redis.call('PEXPIRE', place, life) end
  end
  if limit > 0 and #body > limit then return 4 end
  if ARGV[6] ~= '1' or string.byte(body) ~= 1 then return body end
  if refreshing then
    local t = redis.call('TIME')
    if tonumber(refreshing) > t[1] * 1000 + math.floor(t[2] / 1000) then return body end
  end
  return {body, redis.call('PTTL', key)}
end

local function look(key)
  local pointer = redis.call('GET', key)
  local state = pointer and string.byte(pointer)
  if state == 73 then -- I
    local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    for deadline in string.gmatch(pointer, ':(%d+)') do
      if tonumber(deadline) > now then return 3 end
    end
  elseif pointer and string.sub(pointer, 2, 17) == tag then
    if state == 76 then return 2 end -- L
    local version, refreshing = string.sub(pointer, 18), nil -- V
    if state == 82 then refreshing, version = string.match(version, ':(%d+):(.*)') end -- R
    local slash = string.find(key, '/', 1, true)
    local place = string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15)
      .. '/' .. version
    local body = redis.call('GET', place)
    if body then
      if ARGV[5] then return hit(key, place, body, refreshing) end
      if limit > 0 and #body > limit then return 4 end
      return body
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
