-- Let a message wait in its place, and wake one who waits for work.
-- KEYS: hopeful, bell. ARGV: score, member.
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], '1') end
return 1
