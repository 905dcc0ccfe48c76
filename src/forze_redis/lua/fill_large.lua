#!lua
-- Purpose: store one large body if its reader's lease still stands, on a connection of its own.
--   That connection may have reached another server than the one that gave the lease, so the
--   server is asked for its generation in the same script.
-- KEYS: 1     pointer key (string)
-- ARGV: 1     tag (16 characters: generation and schema); generation '00000000' is not checked
--       2     token (text)
--       3     version (text)
--       4     body (bytes)
--       5     life in milliseconds (integer > 0)
-- Reply: 1 stored, 0 refused
-- Cost: O(1) plus the body and INFO
-- Server: Redis 7.0, Valkey 7.2
local key, generation = KEYS[1], string.sub(ARGV[1], 1, 8)
if generation ~= '00000000'
  and string.match(redis.call('INFO', 'replication'), 'master_replid:(........)') ~= generation then
  return 0
end
if redis.call('GET', key) ~= 'L' .. ARGV[1] .. ARGV[2] then return 0 end
local slash = string.find(key, '/', 1, true)
redis.call('SET', string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15)
  .. '/' .. ARGV[3], ARGV[4], 'PX', ARGV[5])
redis.call('SET', key, 'V' .. ARGV[1] .. ARGV[3], 'PX', ARGV[5])
return 1
