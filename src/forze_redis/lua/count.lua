#!lua
-- Purpose: add to a counter, once per operation, unless the new value were beyond a bound.
--   Numbers are compared and answered as decimal text: a Lua number is exact to 2^53 only.
-- KEYS: 1     the counter (string holding a 64-bit integer)
--       2     the operation's record (string), left out where the change has no id; one slot
-- ARGV: 1     what to add (64-bit integer)
--       2     the most the old value may be (the least, where 1 is below zero; integer of any
--             size), or '' where nothing can be exceeded
--       3     what is being done (text), compared when the operation is repeated
--       4     milliseconds to remember the operation (integer > 0)
-- Reply: {1, new value} done; {0, old value} refused; {2, its answer} done before;
--        {3, what} the id was used for something else
-- Cost: O(1)
-- Server: Redis 7.0, Valkey 7.2
local by, limit, what = ARGV[1], ARGV[2], ARGV[3]

local function less(a, b) -- of two integers as canonical decimal text
  local below = string.sub(a, 1, 1) == '-'
  if below ~= (string.sub(b, 1, 1) == '-') then return below end
  if #a ~= #b then return (#a < #b) ~= below end
  return a ~= b and (a < b) ~= below
end

local function is_int64(text)
  if text ~= '0' and not string.match(text, '^%-?[1-9]%d*$') then return false end
  return not less(text, '-9223372036854775808') and not less('9223372036854775807', text)
end

if KEYS[2] then
  local record = redis.call('GET', KEYS[2])
  if record then
    local before, answer = string.match(record, '^(.*)=(.*)$')
    if before == what then return { 2, answer } end
    return { 3, before }
  end
end
local old = redis.call('GET', KEYS[1]) or '0'
if not is_int64(old) then return redis.error_reply('ERR value is not an integer or out of range') end
if limit ~= '' then
  local beyond
  if string.sub(by, 1, 1) == '-' then beyond = less(old, limit) else beyond = less(limit, old) end
  if beyond then return { 0, old } end
end
redis.call('INCRBY', KEYS[1], by)
local new = redis.call('GET', KEYS[1])
if KEYS[2] then redis.call('SET', KEYS[2], what .. '=' .. new, 'PX', ARGV[4]) end
return { 1, new }
