-- Deletes the consumer of a drain that stops, unless it has pending entries.
--
-- KEYS  1 outbox, stream
-- ARGV  1 consumer group, 2 this consumer
-- Returns 1 if it was deleted, else 0: another drain claims the entries and deletes the
-- consumer later.
--
-- Closes the race between the delivery of an entry and the deletion, which would lose it.

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
