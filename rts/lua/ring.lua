-- Wakes an idle consumer after a message was pushed to a plain list.
-- KEYS: bell. ARGV: TTL of the bell in milliseconds, since consumers without the deadline
--   order never pop it.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('LPUSH', KEYS[1], '1')
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
