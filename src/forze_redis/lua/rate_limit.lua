#!lua
-- Purpose: take permits from token buckets. Requests are served in their order; each has what it
--   asks from every bucket, or nothing from any. A refusal writes nothing.
-- KEYS: 1..n  buckets (hash), absent while full, with the time until they are as TTL; one slot
--         tokens  permits in it (decimal) at
--         at      (microseconds since 1970 of this server's clock)
--         by      the attempt that last took any, ':', and of each of its requests 1 or 0
-- ARGV: 1     attempt (text without ':'); the same again gets the same answer
--       then of each bucket: its capacity (integer > 0), microseconds until it has one more
--         permit (decimal > 0)
--       then of each request, for each bucket: permits (integer; 0 only looks, below 0 gives back)
-- Reply: of each request: 1 granted, 0 not; then of each bucket: whole permits left after it;
--        microseconds until there are enough (0 there are, -1 never); microseconds until it is full
-- Cost: O(buckets * requests)
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local STEP = 1000000 -- a stamp further ahead of the clock says that the clock was put back
local WHOLE = 1e-9 -- what rounding may have taken from a permit
local LONGEST = 9e15
local attempt, n = ARGV[1], #KEYS

local buckets, answered = {}, nil
for i = 1, n do
  local capacity, interval = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local kept = redis.call('HMGET', KEYS[i], 'tokens', 'at', 'by')
  local tokens, at = tonumber(kept[1] or capacity), tonumber(kept[2] or now)
  local stepped = at > now + STEP
  if stepped then at = now end
  if at < now then
    tokens = tokens + (now - at) / interval
    at = now
  end
  buckets[i] = {
    tokens = math.min(tokens, capacity), at = at, capacity = capacity, interval = interval,
    stepped = stepped,
  }
  local by, grants = string.match(kept[3] or '', '^(.*):([01]+)$')
  if by == attempt then answered = grants end
end

local function microseconds(permits, bucket)
  return math.min(LONGEST, math.ceil(permits * bucket.interval + bucket.at - now - WHOLE))
end

local reply, grants, taken = {}, '', false
local first = 2 * n + 1
for r = 0, (#ARGV - first) / n - 1 do
  local granted = true
  for i, bucket in ipairs(buckets) do
    local cost = tonumber(ARGV[first + r * n + i])
    if cost > 0 and bucket.tokens + WHOLE < cost then granted = false end
  end
  if answered then granted = string.sub(answered, r + 1, r + 1) == '1' end
  grants = grants .. (granted and 1 or 0)
  reply[#reply + 1] = granted and 1 or 0
  for i, bucket in ipairs(buckets) do
    local cost = tonumber(ARGV[first + r * n + i])
    if granted and not answered and cost ~= 0 then
      bucket.tokens = math.min(bucket.capacity, bucket.tokens - cost)
      taken = true
    end
    local wait = 0
    if not granted and cost > bucket.capacity then
      wait = -1
    elseif not granted and (answered or bucket.tokens + WHOLE < cost) then
      wait = math.max(1, microseconds(cost - bucket.tokens, bucket))
    end
    reply[#reply + 1] = math.max(0, math.floor(bucket.tokens + WHOLE))
    reply[#reply + 1] = wait
    reply[#reply + 1] = math.max(0, microseconds(bucket.capacity - bucket.tokens, bucket))
  end
end

for i, bucket in ipairs(buckets) do
  local missing = bucket.capacity - bucket.tokens
  if taken and missing <= WHOLE then
    redis.call('DEL', KEYS[i])
  elseif taken then
    redis.call('HSET', KEYS[i], 'tokens', string.format('%.17g', bucket.tokens),
      'at', string.format('%.0f', bucket.at), 'by', attempt .. ':' .. grants)
    redis.call('PEXPIRE', KEYS[i],
      string.format('%.0f', math.max(1, math.ceil(microseconds(missing, bucket) / 1000))))
  elseif bucket.stepped then -- written down, or the bucket stands still as long as the step was
    redis.call('HSET', KEYS[i], 'at', string.format('%.0f', now))
  end
end
return reply
