-- Put back a message that was claimed and not acknowledged, if it is still the same
-- claim: who comes second, or after the acknowledgement, changes nothing.
-- KEYS: unacked, unacked_index; then for each place the message goes to: a queue's
--   hopeful set, or one of its plain lists, and its bell.
-- ARGV: 1 tag; 2 what was noted of it ('' for nothing); 3 instant of the claim, at the
--   latest; then for each place: its score (or "LPUSH", "RPUSH") and the member.
-- Returns 1 if it was put back, else 0.
local tag = ARGV[1]
local claimed = redis.call('ZSCORE', KEYS[2], tag)
if (redis.call('HGET', KEYS[1], tag) or '') ~= ARGV[2]
    or (claimed and tonumber(claimed) > tonumber(ARGV[3])) then
  return 0
end
redis.call('ZREM', KEYS[2], tag)
redis.call('HDEL', KEYS[1], tag)
for place = 1, #KEYS / 2 - 1 do
  local key, bell = KEYS[1 + 2 * place], KEYS[2 + 2 * place]
  local score, member = ARGV[2 + 2 * place], ARGV[3 + 2 * place]
  if score == 'LPUSH' or score == 'RPUSH' then
    redis.call(score, key, member)
  else
    redis.call('ZADD', key, score, member)
  end
  if redis.call('EXISTS', bell) == 0 then redis.call('LPUSH', bell, '1') end
end
return 1
