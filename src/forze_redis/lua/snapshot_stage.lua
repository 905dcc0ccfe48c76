#!lua
-- Purpose: write one more part of a run where no reader looks. The first part registers the
--   writer; whoever deletes the run strikes it off, and its later parts are refused.
-- KEYS: 1     what this writer has written so far (string)
--       2     the run's writers (hash: token to 1), of the same slot
-- ARGV: 1     token of the writer (text)
--       2     how many bytes were written before (integer; 0: this is the first part)
--       3     milliseconds to keep it for the next part (integer > 0)
--       4     the part (bytes)
-- Reply: 1 written, 0 refused (the run was deleted, or what was written is gone)
-- Cost: O(bytes of the part)
-- Server: Redis 7.0, Valkey 7.2
if ARGV[2] == '0' then
  redis.call('HSET', KEYS[2], ARGV[1], 1)
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
elseif redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0
  or redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[2]) then
  return 0
else
  redis.call('APPEND', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
