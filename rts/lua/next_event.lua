-- Reads the next event for one of the workers that listen, after acknowledging the last.
--
-- KEYS  1 events, stream
-- ARGV  1 consumer group, 2 this consumer
--       3 id of the event that was handled, '' for none
--       4 idle time in milliseconds after which another worker's pending event is claimed
--       5 idle time in milliseconds after which a consumer with nothing pending is deleted;
--         '' to delete none
-- Returns the event's id, then its field names and values; empty if there is none.
--
-- A new group starts at the end of the stream: nobody listened before. What is pending for this
-- consumer comes first: the reply that brought it was lost, as it has one event at a time.

local stream, group, me = KEYS[1], ARGV[1], ARGV[2]

ensure_group(stream, group, '$')
if ARGV[3] ~= '' then
  redis.call('XACK', stream, group, ARGV[3])
end
if ARGV[5] ~= '' then
  delete_idle(stream, group, me, tonumber(ARGV[5]))
end
local found
for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', 10)) do
  if not found and (pending[2] == me or pending[3] >= tonumber(ARGV[4])) then
    local claimed = redis.call('XCLAIM', stream, group, me, 0, pending[1])
    if claimed[1] and claimed[1][2] then
      found = claimed[1]
    else
      redis.call('XACK', stream, group, pending[1]) -- it was trimmed from the stream
    end
  end
end
if not found then
  local reply = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', stream, '>')
  found = reply and reply[1] and reply[1][2] and reply[1][2][1]
end
if not found then
  return {}
end
return {found[1], unpack(found[2])}
