-- Begins or ends an alert, and queues the messages about it.
--
-- KEYS  1 alerts, hash: key of the alert to what it began with
--       2 events, stream
--       3 counters, hash
--       4… a list of messages for each webhook that is told
-- ARGV  1 key of the alert
--       2 what must stand there now, '' for nothing
--       3 what shall stand there, '' for nothing
--       4 message
--       5 notice for the stream, '' for none
--       6 most events, 7 most messages in a list, 8 seconds that a list is kept
-- Returns 1 where it was done, 0 where something else stands there: another companion
-- was faster.
--
-- Closes the race between two leaders, each of which would send a message.

local alerts, events, counters = KEYS[1], KEYS[2], KEYS[3]
local alert, was, becomes, message, notice = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if (redis.call('HGET', alerts, alert) or '') ~= was then
  return 0
end
if becomes == '' then
  redis.call('HDEL', alerts, alert)
else
  redis.call('HSET', alerts, alert, becomes)
end
for i = 4, #KEYS do
  -- A list that a person has changed costs this webhook its message, and no other.
  local length = redis.pcall('RPUSH', KEYS[i], message)
  while type(length) == 'number' and length > tonumber(ARGV[7]) do
    redis.call('LPOP', KEYS[i])
    redis.pcall('HINCRBY', counters, 'webhook_dropped', 1)
    length = length - 1
  end
  redis.call('EXPIRE', KEYS[i], ARGV[8])
end
if notice ~= '' then
  redis.pcall('XADD', events, 'MAXLEN', '~', ARGV[6], '*', 'n', notice)
end
return 1
