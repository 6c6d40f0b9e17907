-- Reads the next entries of the outbox for one drain.
--
-- KEYS  1 outbox, stream
--       2 turn    string that expires: the drain that last took new entries
--       3 look    string that expires: the drain that last looked for pending entries
-- ARGV  1 consumer group        4 idle time in milliseconds after which another drain's
--       2 this consumer           pending entries are claimed
--       3 most entries          5 milliseconds for which new entries gather after another
--                                 drain took some; 0: this drain does not wait for others
--       6 number of entries that do not wait for that
-- Returns one string, '' if there is nothing: three lines for each entry, its id, record
-- and what was learned ('' for nothing). One string, because clients take four times as
-- long to parse a list of strings.

local GONE_MS = 600000 -- idle time after which a consumer with nothing pending is deleted

local stream, group, me, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

-- Claims idle entries. Not by XAUTOCLAIM, which needs Redis 6.2, and before Redis 7 leaves
-- entries that were trimmed from the stream pending for ever.
local function take_over()
  local ids, entries, there = {}, {}, {}
  for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', most)) do
    if pending[3] >= tonumber(ARGV[4]) then
      ids[#ids + 1] = pending[1]
    end
  end
  if #ids == 0 then
    return entries
  end
  for _, entry in ipairs(redis.call('XCLAIM', stream, group, me, 0, unpack(ids))) do
    if entry and entry[2] then
      entries[#entries + 1] = entry
      there[entry[1]] = true
    end
  end
  for _, id in ipairs(ids) do
    if not there[id] then
      redis.call('XACK', stream, group, id)
    end
  end
  return entries
end

ensure_group(stream, group, '0')
-- Of hundreds of drains, one at a time takes and looks. Else each would get a record or two,
-- and a write of these costs as much as one of hundreds.
local gather_ms, look_ms = tonumber(ARGV[5]), math.ceil(tonumber(ARGV[4]) / 2)

-- Returns whose turn it is, if it is anybody's.
local function holder_of(turn, ms)
  local whose = redis.pcall('GET', turn)
  return type(whose) == 'string' and not outlasts(turn, ms) and whose
end

-- Returns whether it is noted: not where memory is used up.
local function keep(turn, ms)
  return ms > 0 and redis.pcall('SET', turn, me, 'PX', ms).ok
end

local entries = {}
if not holder_of(KEYS[3], look_ms) then
  if keep(KEYS[3], look_ms) then -- else each read of each drain comes here
    delete_idle(stream, group, me, GONE_MS)
  end
  entries = take_over()
end
if #entries == 0 then
  local holder = gather_ms > 0 and holder_of(KEYS[2], gather_ms)
  if not holder or holder == me or redis.call('XLEN', stream) >= tonumber(ARGV[6]) then
    local reply = redis.call(
      'XREADGROUP', 'GROUP', group, me, 'COUNT', most, 'STREAMS', stream, '>')
    entries = reply and reply[1] and reply[1][2] or {}
    if #entries > 0 then
      keep(KEYS[2], gather_ms)
    end
  end
end

local function line(text)
  if string.find(text, '\n', 1, true) then -- whitespace in JSON, or not JSON
    return (string.gsub(text, '\n', ' '))
  end
  return text
end

local lines, n = {}, 0
for _, entry in ipairs(entries) do
  local record, learned = '', ''
  local fields = entry[2]
  for i = 1, #fields, 2 do
    local name = fields[i]
    if name == 'r' then
      record = line(fields[i + 1])
    elseif name == 'l' then
      learned = line(fields[i + 1])
    end
  end
  lines[n + 1], lines[n + 2], lines[n + 3] = entry[1], record, learned
  n = n + 3
end
return table.concat(lines, '\n')
