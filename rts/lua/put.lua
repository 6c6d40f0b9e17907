-- Adds a message to a queue in deadline order and wakes an idle consumer.
-- KEYS: hopeful, bell; for a queue that expires also its other keys. ARGV: score, member;
--   for such a queue also its TTL in milliseconds, which all KEYS get.
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], '1') end
if ARGV[3] then
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
end
