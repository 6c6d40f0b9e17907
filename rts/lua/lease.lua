-- Acquires, renews or releases a lease.
--
-- KEYS  1 the lease, string with a TTL: its holder's name
-- ARGV  1 the caller's name, 2 duration from now in milliseconds; 0 releases it
-- Returns 1 if the caller holds it now, else 0.
--
-- Closes the race between reading the holder and the write that follows, in which the
-- lease may expire and be acquired by another.

local holder, duration = redis.call('GET', KEYS[1]), tonumber(ARGV[2])
if holder and holder ~= ARGV[1] then
  if duration == 0 or not outlasts(KEYS[1], duration) then
    return 0
  end
  holder = false
end
if duration == 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
if holder then -- not SET, which Redis refuses when it is out of memory
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
