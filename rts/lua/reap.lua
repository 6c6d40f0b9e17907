-- Ends an orphaned run, whose process or worker is gone, unless it has ended meanwhile.
--
-- KEYS  1 running, hash; 2 outbox, stream; 3 counters, hash; 4 to 8 for remove_open.lua
-- ARGV  1 field in running, 2 its value as it was read, 3 record (JSON), 4 the task's id
-- Returns 1 if the run was ended, 0 if another process was first.
--
-- Closes the race with another companion, and with the run's own late end.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('XADD', KEYS[2], '*', 'r', ARGV[3])
redis.call('HDEL', KEYS[1], ARGV[1])
-- pcall: a key of the wrong type must not keep the task open.
redis.pcall('HINCRBY', KEYS[3], 'runs_lost', 1)
close({unpack(KEYS, 4, 8)}, {ARGV[4]})
return 1
