-- Wake one who waits for work, after a message was put on a plain list.
-- KEYS: bell. ARGV: milliseconds after which it is not rung any more, since those
-- who read plain lists only will never answer it.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('LPUSH', KEYS[1], '1')
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
