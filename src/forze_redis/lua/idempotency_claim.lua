#!lua
-- Purpose: ask for the right to run an operation; a repeat of the same attempt gets the same
--   answer, and a refusal writes nothing.
-- KEYS: 1     record (hash)
-- ARGV: 1     owner: the attempt's own id (text)
--       2     payload hash (text)
--       3     lease in milliseconds (integer > 0)
--       4     milliseconds the record is kept (integer > 0)
-- Reply: array: 'new' | 'again' | 'takeover' | 'mine', generation: granted
--        'busy', milliseconds of the lease that are left: another runs it
--        'mismatch': the key stands for another payload
--        'completed', status (integer as text), head (JSON), body: it was run
-- Cost: O(1) plus the body
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local key, owner, payload = KEYS[1], ARGV[1], ARGV[2]
local r = redis.call('HMGET', key, 'state', 'payload', 'owner', 'generation', 'lease')
local state, generation, how = r[1], 1, 'new'
if state then
  if state ~= 'free' and r[2] ~= payload then return {'mismatch'} end
  if state == 'completed' then
    local answer = redis.call('HMGET', key, 'status', 'head', 'body')
    return {'completed', answer[1], answer[2], answer[3]}
  end
  generation, how = tonumber(r[4]) + 1, 'again'
  if state == 'pending' then
    if r[3] == owner then
      generation, how = generation - 1, 'mine'
    elseif tonumber(r[5]) > now then
      return {'busy', tonumber(r[5]) - now}
    else
      how = 'takeover'
    end
  end
end
redis.call('HSET', key, 'state', 'pending', 'payload', payload, 'owner', owner,
  'generation', string.format('%.0f', generation),
  'lease', string.format('%.0f', now + tonumber(ARGV[3])))
redis.call('PEXPIRE', key, ARGV[4])
return {how, generation}
