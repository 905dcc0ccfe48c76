#!lua
-- Purpose: remove a run, and strike off whoever is writing it.
-- KEYS: 1     the run (string)
--       2     its writers (hash: token to 1), of the same slot
-- ARGV: none
-- Reply: {1 if there was a run, else 0; the tokens of its writers}
-- Cost: O(writers)
-- Server: Redis 7.0, Valkey 7.2
local tokens = redis.call('HKEYS', KEYS[2])
redis.call('DEL', KEYS[2])
return { redis.call('UNLINK', KEYS[1]), tokens }
