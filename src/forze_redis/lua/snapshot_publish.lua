#!lua
-- Purpose: write the last part of a run, and put the whole in the place of the run.
-- KEYS: 1     what this writer has written so far (string)
--       2     the run's writers (hash: token to 1)
--       3     the run (string); all of one slot
-- ARGV: 1     token of the writer (text)
--       2     how many bytes were written before (integer > 0)
--       3     milliseconds the run lives (integer > 0)
--       4     the last part (bytes)
-- Reply: 1 published, 0 refused (the run was deleted, or what was written is gone)
-- Cost: O(bytes of the part), and freeing the run that was there before
-- Server: Redis 7.0, Valkey 7.2
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0
  or redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[2]) then
  return 0
end
redis.call('APPEND', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('RENAME', KEYS[1], KEYS[3])
return 1
