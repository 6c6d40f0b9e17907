-- Move a message out of the deadline order to a plain list, if it still waits.
-- KEYS: sorted set, list. ARGV: member, payload.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[2])
  return 1
end
return 0
