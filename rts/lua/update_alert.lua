-- Fires or resolves an alert, and enqueues the messages about it.
--
-- KEYS  1 alerts, hash: key of a firing alert -> the state that it fired with
--       2 events, stream
--       3 counters, hash
--       4… the message list of each webhook to notify
-- ARGV  1 key of the alert
--       2 its expected current state, '' for none
--       3 its new state, '' for none
--       4 message
--       5 event for the stream, '' for none
--       6 most events, 7 most messages in a list, 8 TTL of a list in seconds
-- Returns 1 if done, 0 if the state differs: another companion was faster.
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
  -- A list of the wrong type costs only this webhook its message.
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
