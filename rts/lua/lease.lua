-- Takes or keeps a lease, or gives it up.
--
-- KEYS  1 the lease, string: the name of who has it; it expires
-- ARGV  1 name of who asks, 2 milliseconds to have it for from now on; 0 gives it up
-- Returns 1 where it is the asker's now, else 0.
--
-- Closes the race between a look at whose it is, at the end of its time, and the change
-- that follows, which would then be to another's.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
if holder then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
