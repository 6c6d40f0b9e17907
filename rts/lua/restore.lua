-- Puts learned taus back into a Redis that was wiped, once.
--
-- KEYS  1 generation  string, absent in a new or wiped Redis
--       2 tau, 3 count, 4 deviation  hashes by field (see finish.lua)
-- ARGV  1 value for generation, then groups of four: field, tau in seconds as
--       text, count, deviation in seconds as text
-- Returns the number of fields restored, -1 where the Redis was not wiped.
--
-- Closes the race of several drains that notice the wipe at the same time. What
-- was learned between the wipe and now (about a second) gives way.

if redis.call('EXISTS', KEYS[1]) == 1 then
  return -1
end
redis.call('SET', KEYS[1], ARGV[1])
local restored = 0
for i = 2, #ARGV, 4 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 2])
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 3])
  restored = restored + 1
end
return restored
