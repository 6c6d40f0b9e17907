-- The end of one run, in one atomic step: learn its runtime, put its record on
-- the outbox, take its note off the running ones. Also called to learn only.
--
-- KEYS  1 tau        hash, field -> seconds as text (field: type, or type/name)
--       2 count      hash, the same fields -> runs learned
--       3 deviation  hash, the same fields -> EMA of |actual - tau|, seconds
--       4 outbox     stream
--       5 running    hash, field of a run -> note of its start (JSON)
--       6 counters   hash, name -> number
--       7 seq of this writer; 8 seq of the writer that may have sent it before
-- ARGV  1 record (JSON), '' to learn only     8 task name
--       2 field in running, '' for none       9 first tau of the type, seconds
--       3 '1': put the note on the outbox    10 λ
--       4 number of this record              11 most fields in tau
--       5 number it may have had, or ''      12 most records in the outbox
--       6 runtime in seconds, '' to learn    13 prefix of the sketches
--         nothing                            14 ln of the sketch's base
--       7 task type
-- Returns 'dup'; 'ok' where nothing was learned; 'ok TB TA NB NA' with tau before
-- and after of the type and of the name in seconds, '-' for one not learned.
--
-- Closes two races: two runs that read the same tau and lose one's update; and
-- a record that is delivered again because its first answer never came.

local SEQ_TTL = 3600 -- seconds that a repeated delivery is recognised

local seq = tonumber(ARGV[4])
local last = tonumber(redis.call('GET', KEYS[7]) or '0')
if last >= seq then
  return 'dup'
end
if ARGV[5] ~= '' then
  if tonumber(redis.call('GET', KEYS[8]) or '0') >= tonumber(ARGV[5]) then
    redis.call('SET', KEYS[7], seq, 'EX', SEQ_TTL)
    return 'dup'
  end
  -- A stalled server may still hold the first delivery in its socket buffer.
  redis.call('SET', KEYS[8], ARGV[5], 'EX', SEQ_TTL)
end
redis.call('SET', KEYS[7], seq, 'EX', SEQ_TTL)

local function text(number)
  return string.format('%.17g', number)
end

local function learn(field, actual)
  local rate = tonumber(ARGV[10])
  local known = redis.call('HGET', KEYS[1], field)
  local tau = known and tonumber(known)
  if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[11]) then
    redis.call('HINCRBY', KEYS[6], 'tau_keys_refused', 1)
    return '-', '-'
  end
  if not tau or not (tau > 0 and tau < math.huge) then
    tau = tonumber(ARGV[9])
  end
  local new = rate * actual + (1 - rate) * tau
  redis.call('HSET', KEYS[1], field, text(new))
  redis.call('HINCRBY', KEYS[2], field, 1)
  local off = math.abs(actual - tau)
  local deviation = tonumber(redis.call('HGET', KEYS[3], field) or '')
  if deviation then
    off = rate * off + (1 - rate) * deviation
  end
  redis.call('HSET', KEYS[3], field, text(off))
  local bucket = 'zero'
  if actual > 1e-9 then
    bucket = math.ceil(math.log(actual) / tonumber(ARGV[14]))
  end
  redis.call('HINCRBY', ARGV[13] .. field, bucket, 1)
  return text(tau), text(new)
end

local learned = ''
if ARGV[6] ~= '' then
  local actual = tonumber(ARGV[6])
  local before, after = learn(ARGV[7], actual)
  local name_before, name_after = learn(ARGV[7] .. '/' .. ARGV[8], actual)
  learned = table.concat({before, after, name_before, name_after}, ' ')
end

local note
if ARGV[2] ~= '' then
  if ARGV[3] == '1' then
    note = redis.call('HGET', KEYS[5], ARGV[2])
  end
  redis.call('HDEL', KEYS[5], ARGV[2])
end

if ARGV[1] ~= '' then
  local most = tonumber(ARGV[12])
  if redis.call('XLEN', KEYS[4]) >= most then
    local dropped = redis.call('XTRIM', KEYS[4], 'MAXLEN', most - 1)
    redis.call('HINCRBY', KEYS[6], 'outbox_dropped', dropped)
  end
  local entry = {'r', ARGV[1]}
  if note then
    entry[#entry + 1] = 'start'
    entry[#entry + 1] = note
  end
  if learned ~= '' then
    entry[#entry + 1] = 'l'
    entry[#entry + 1] = learned
  end
  redis.call('XADD', KEYS[4], '*', unpack(entry))
end

if learned == '' then
  return 'ok'
end
return 'ok ' .. learned
