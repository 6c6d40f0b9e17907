-- Ends a run whose process or worker is gone, unless it has ended meanwhile.
--
-- KEYS  1 running, hash; 2 outbox, stream; 3 counters, hash; 4 to 8 what close.lua needs
-- ARGV  1 field in running, 2 the note as it was read, 3 record (JSON), 4 the task's id
-- Returns 1 where the run was ended, 0 where somebody else was first.
--
-- Closes the race between the janitor and the run's own late end.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('XADD', KEYS[2], '*', 'r', ARGV[3])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HINCRBY', KEYS[3], 'runs_lost', 1)
close({KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]}, {ARGV[4]})
return 1
