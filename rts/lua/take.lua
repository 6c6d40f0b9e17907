-- Reads the next entries of the outbox for one drain.
--
-- KEYS  1 outbox, stream
-- ARGV  1 consumer group        4 milliseconds after which an entry that another
--       2 this consumer           drain took and did not finish is taken over
--       3 most entries          5 '1': look for such entries first
-- Returns a flat list, four texts for each entry: id, record, note of the start
-- ('' where none), what was learned ('' where nothing).
--
-- Closes the race between a wiped Redis (no group) and the read.

local function read()
  if ARGV[5] == '1' then
    local reply = redis.pcall('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[4], '0-0', 'COUNT', ARGV[3])
    if reply.err then
      return reply
    end
    if #reply[2] > 0 then
      return reply[2]
    end
  end
  local reply = redis.pcall(
    'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
  if reply and reply[1] then
    return reply[1][2]
  end
  return reply or {}
end

local entries = read()
if entries.err and string.find(entries.err, 'NOGROUP', 1, true) then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  entries = read()
end
if entries.err then
  return redis.error_reply(entries.err)
end

local flat = {}
for _, entry in ipairs(entries) do
  if entry and entry[2] then -- not deleted meanwhile
    local fields = {r = '', start = '', l = ''}
    for i = 1, #entry[2], 2 do
      fields[entry[2][i]] = entry[2][i + 1]
    end
    local n = #flat
    flat[n + 1] = entry[1]
    flat[n + 2] = fields.r
    flat[n + 3] = fields.start
    flat[n + 4] = fields.l
  end
end
return flat
