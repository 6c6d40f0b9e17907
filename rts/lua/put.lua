-- Let a message wait in its place, and wake one who waits for work.
-- KEYS: hopeful, bell; then the other keys of a queue that expires. ARGV: score, member;
--   then, of such a queue, the milliseconds after which all of them go.
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], '1') end
if ARGV[3] then
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
end
return 1
