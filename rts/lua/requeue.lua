-- Requeues a message that was claimed, unless meanwhile another worker has requeued it, or it
-- was acknowledged, or claimed again.
-- KEYS: unacked, unacked_index; then for each queue that it goes to: the hopeful set, or a
--   plain list, and the bell.
-- ARGV: 1 tag; 2 its entry in unacked as it was read ('' for none); 3 latest instant of the
--   claim, epoch seconds; 4 TTL of a bell in milliseconds, since consumers without the
--   deadline order never pop it; then for each queue: score (of a list: "LPUSH" or
--   "RPUSH"), member.
local tag = ARGV[1]
local claimed = redis.call('ZSCORE', KEYS[2], tag)
if (redis.call('HGET', KEYS[1], tag) or '') ~= ARGV[2]
    or (claimed and tonumber(claimed) > tonumber(ARGV[3])) then
  return
end
redis.call('ZREM', KEYS[2], tag)
redis.call('HDEL', KEYS[1], tag)
for queue = 1, #KEYS / 2 - 1 do
  local key, bell = KEYS[1 + 2 * queue], KEYS[2 + 2 * queue]
  local score, member = ARGV[3 + 2 * queue], ARGV[4 + 2 * queue]
  if score == 'LPUSH' or score == 'RPUSH' then
    redis.call(score, key, member)
  else
    redis.call('ZADD', key, score, member)
  end
  if redis.call('EXISTS', bell) == 0 then
    redis.call('LPUSH', bell, '1')
    redis.call('PEXPIRE', bell, ARGV[4])
  end
end
