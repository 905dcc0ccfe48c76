#!lua
-- Purpose: cut a page out of a run (see packed_ids.py for the bytes).
-- KEYS: 1     the run (string)
-- ARGV: 1     the fingerprint it must have (bytes), or '' for any
--       2     the number of the first id (integer >= 0)
--       3     how many ids at most (integer > 0)
-- Reply: {kind, index, ids}, the index only of kind 'v'; nil where there is no run, or one of
--        another fingerprint; 0 where the key holds something else
-- Cost: O(bytes of the page)
-- Server: Redis 7.0, Valkey 7.2
local key = KEYS[1]
local head = redis.call('GETRANGE', key, 0, 21)
if head == '' then return false end
local kind, total, named = string.match(head, '^FRS1([uUiv])(%d+)%d(%d%d%d%d%d%d)$')
if not kind then return 0 end
local base = 22 + tonumber(named)
if ARGV[1] ~= '' and redis.call('GETRANGE', key, 22, base - 1) ~= ARGV[1] then return false end

total = tonumber(total)
local first = tonumber(ARGV[2])
local after = math.min(first + tonumber(ARGV[3]), total)
if first >= after then return { kind, '', '' } end
if kind ~= 'v' then
  local width = kind == 'i' and 8 or 16
  return { kind, '', redis.call('GETRANGE', key, base + first * width, base + after * width - 1) }
end
local index = redis.call('GETRANGE', key, base + first * 4, base + after * 4 + 3)
local from, to = struct.unpack('>I4', index), struct.unpack('>I4', index, #index - 3)
base = base + (total + 1) * 4
return { kind, index, redis.call('GETRANGE', key, base + from, base + to - 1) }
