#!lua
-- Purpose: one circuit, for everybody who calls what it guards. Whoever asks or tells something
--   hears where it stands; a transition is told to all, and raises the generation. What time does
--   to it is done when somebody comes. A refusal writes nothing.
-- KEYS: 1     the circuit (hash), absent while closed with no outcome in its window
--         state       'open', 'half_open', 'forced_open', 'disabled'; absent while closed
--         generation  rises with each transition (microseconds since 1970, or the last one + 1)
--         until       open: when the break ends; half open: when it opens again unless an outcome
--                     comes ('' while no probe is out); microseconds
--         trips       openings in a row
--         probes      half open: 'permit=end of its lease, microseconds' with a space between
--         calls, failures, slow   half open: the outcomes of probes
--         0..9        closed: 'bucket calls failures slow', a ring by the bucket's number
--       2     channel (no key, and named so that it stands in its slot): at each transition is
--             told 'name state generation microseconds' (how long it is open at least)
-- ARGV: 1     'look'; 'admit': may a call be made; 'record': calls have ended; 'force': by hand
--       2     admit, record: the permit of a probe (text without '=' and ' '), '' for none;
--             force: the state
--       3     record: the generation under which the calls were let through; a permit says it too
--       4-6   record: how many have ended (integer; with 0 the probe's place is given back), how
--             many of them failed, how many were slow
--       7     sampling window, microseconds (integer > 0)
--       8     least calls in the window (integer > 0)
--       9     failures, as part of the calls, that open it (decimal, above 0, at most 1)
--       10    the same of slow calls
--       11-12 first and longest break, microseconds (integer > 0)
--       13    probes (integer > 0)
--       14    lease of a probe, microseconds (integer > 0)
--       15    microseconds for which probes may be out without an outcome (integer > 0)
--       16    milliseconds for which to remember it (integer > 0)
-- Reply: {1 admitted or 0, state, generation as text, microseconds until to ask again, calls,
--         failures}; the last two of the window, or of the probes
-- Cost: O(probes)
-- Server: Redis 7.0, Valkey 7.2
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local STEP = 1000000 -- an end further away than can be says that the clock was put back
local LONGEST_RUN = 32
local event, permit = ARGV[1], ARGV[2]
local min_calls, failure_ratio, slow_ratio = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local first_break, longest_break = tonumber(ARGV[11]), tonumber(ARGV[12])
local places, lease, budget = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local width = tonumber(ARGV[7]) / 10
local bucket = math.floor(now / width)

local function integer(x) return string.format('%.0f', x) end

local kept = redis.call('HMGET', KEYS[1], 'state', 'generation', 'until', 'trips', 'probes',
  'calls', 'failures', 'slow')
local state, generation = kept[1] or 'closed', tonumber(kept[2] or '0')
local ends, trips = tonumber(kept[3] or ''), tonumber(kept[4] or '0')
local calls, failures, slow = tonumber(kept[6] or '0'), tonumber(kept[7] or '0'), tonumber(kept[8] or '0')
local probes = {}
for id, at in string.gmatch(kept[5] or '', '(%S+)=(%d+)') do
  probes[#probes + 1] = { id = id, ends = math.min(tonumber(at), now + lease) }
end
local moved, weighed = false, false -- another state; other probes or outcomes of theirs

local function bad(among) -- divided: 0.07 times 100 is more than 7
  return failures / among >= failure_ratio or slow / among >= slow_ratio
end

local function move(to)
  state, moved = to, true
  generation = math.max(generation + 1, now)
  calls, failures, slow, probes = 0, 0, 0, {}
end

local function break_of(run)
  return math.min(longest_break, first_break * 2 ^ math.min(math.max(run - 1, 0), LONGEST_RUN))
end

local function open(at)
  trips = trips + 1
  ends = at + break_of(trips)
  move('open')
end

local function pass_time()
  if state == 'open' and now >= ends then
    ends = nil
    move('half_open')
  end
  if state == 'half_open' and ends and now >= ends then
    open(ends)
    if now >= ends then
      ends = nil
      move('half_open')
    end
  end
end

local function admit()
  if state ~= 'half_open' then return state == 'closed' or state == 'disabled' end
  local out, soonest = 0, nil
  for _, probe in ipairs(probes) do
    if probe.id == permit then return true end
    if probe.ends > now then
      out = out + 1
      soonest = math.min(soonest or probe.ends, probe.ends)
    end
  end
  if out + calls >= places then return false, soonest and soonest - now end
  probes[#probes + 1] = { id = permit, ends = now + lease }
  ends, weighed = ends or now + budget, true
  return true
end

local function weigh() -- the outcome of a probe
  local place
  for i, probe in ipairs(probes) do
    if probe.id == permit then place = i end
  end
  if not place then return end
  table.remove(probes, place)
  weighed = true
  if tonumber(ARGV[4]) > 0 then
    calls, failures, slow = calls + 1, failures + tonumber(ARGV[5]), slow + tonumber(ARGV[6])
    ends = now + budget
  end
  if bad(places) then return open(now) end
  if calls >= places then
    trips, ends = 0, nil
    return move('closed')
  end
  if #probes == 0 then ends = nil end
end

local function window() -- what is in it
  for _, each in ipairs(redis.call('HMGET', KEYS[1], 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)) do
    local at, c, f, s = string.match(each or '', '^(%d+) (%d+) (%d+) (%d+)$')
    local age = at and bucket - tonumber(at)
    if age and age >= 0 and age < 10 then
      calls, failures, slow = calls + c, failures + f, slow + s
    end
  end
end

local function count()
  local c, f, s = 0, 0, 0
  local field = bucket % 10
  local ring = redis.call('HGET', KEYS[1], field) or ''
  local of, before, failed, lagged = string.match(ring, '^(%d+) (%d+) (%d+) (%d+)$')
  if tonumber(of or '') == bucket then c, f, s = before, failed, lagged end
  calls, failures, slow = calls + ARGV[4], failures + ARGV[5], slow + ARGV[6]
  if calls >= min_calls and bad(calls) then return open(now) end
  redis.call('HSET', KEYS[1], field, string.format('%.0f %.0f %.0f %.0f', bucket, c + ARGV[4],
    f + ARGV[5], s + ARGV[6]))
  redis.call('PEXPIRE', KEYS[1], ARGV[16])
end

local longest = state == 'open' and break_of(trips) or budget
if ends and ends > now + longest + STEP then -- written down, or it lasts as long as the step was
  ends = now + longest
  redis.call('HSET', KEYS[1], 'until', integer(ends))
end
if state == 'closed' then window() end
local admitted, wait = false, nil
if event == 'force' then
  trips, ends = 0, nil
  move(permit)
elseif event == 'admit' then
  pass_time()
  admitted, wait = admit()
elseif event == 'record' then
  pass_time()
  if state == 'half_open' then
    weigh()
  elseif state == 'closed' and tonumber(ARGV[4]) > 0
    and (not kept[2] or integer(generation) == ARGV[3]) then -- no transition is known: all count
    count()
  end
end
wait = wait or (state == 'open' and math.max(0, ends - now)) or 0

if moved or weighed then
  if moved then redis.call('DEL', KEYS[1]) end
  local leases = {}
  for i, probe in ipairs(probes) do leases[i] = probe.id .. '=' .. integer(probe.ends) end
  redis.call('HSET', KEYS[1], 'generation', integer(generation), 'trips', trips,
    'until', ends and integer(ends) or '', 'probes', table.concat(leases, ' '),
    'calls', calls, 'failures', failures, 'slow', slow)
  if state ~= 'closed' then redis.call('HSET', KEYS[1], 'state', state) end
  if state ~= 'forced_open' and state ~= 'disabled' then
    redis.call('PEXPIRE', KEYS[1], ARGV[16])
  end
end
if moved then
  redis.call('SPUBLISH', KEYS[2],
    KEYS[1] .. ' ' .. state .. ' ' .. integer(generation) .. ' ' .. integer(wait))
end
return { admitted and 1 or 0, state, integer(generation), math.ceil(wait), calls, failures }
