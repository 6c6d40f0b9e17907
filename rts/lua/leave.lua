-- Takes a drain that ends off the consumer group, unless it has entries in hand.
--
-- KEYS  1 outbox, stream
-- ARGV  1 consumer group, 2 this consumer
-- Returns 1 where it was removed, else 0: the entries are taken over by another
-- drain, which removes it later.
--
-- Closes the race between an entry that is handed out and the removal, which
-- would lose it.

if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local is = {}
  for i = 1, #consumer, 2 do
    is[consumer[i]] = consumer[i + 1]
  end
  if is.name == ARGV[2] and is.pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return 0
