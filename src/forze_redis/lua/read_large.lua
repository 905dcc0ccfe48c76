#!lua
-- Purpose: the body a pointer names, whatever its size, on a connection of its own. That
--   connection may have reached another server than the shared one knows of, so the server is
--   asked for its generation in the same script.
-- KEYS: 1     pointer key (string)
-- ARGV: 1     tag (16 characters: generation and schema); generation '00000000' is not checked
-- Reply: the body (bulk string), or null
-- Cost: O(1) plus the body and INFO
-- Server: Redis 7.0, Valkey 7.2
local key, generation = KEYS[1], string.sub(ARGV[1], 1, 8)
if generation ~= '00000000'
  and string.match(redis.call('INFO', 'replication'), 'master_replid:(........)') ~= generation then
  return false
end
local pointer = redis.call('GET', key)
if not pointer or string.sub(pointer, 2, 17) ~= ARGV[1] then return false end
local state, version = string.byte(pointer), string.sub(pointer, 18)
if state == 82 then -- R
  version = string.match(version, ':%d+:(.*)')
elseif state ~= 86 then -- V
  return false
end
local slash = string.find(key, '/', 1, true)
return redis.call('GET', string.sub(key, 1, slash) .. 'cache/body/' .. string.sub(key, slash + 15)
  .. '/' .. version)
