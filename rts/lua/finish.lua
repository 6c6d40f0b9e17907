-- Ends runs: learns their runtimes and appends their records to the outbox. Also called
-- to learn only.
--
-- KEYS  1 tau        hash, field -> seconds as text (field: type, or type/name)
--       2 count      hash, the same fields -> runs learned
--       3 deviation  hash, the same fields -> EMA of |actual - tau|, seconds
--       4 outbox     stream
--       5 counters   hash, name -> number
--       6 to 10      for remove_open.lua: open, overdue, info, counts, closed
--       11 seq       number of this writer's last record that was applied; absent if
--                    nothing is ever delivered twice
-- ARGV  1 λ                              4 prefix of the sketches of runtimes
--       2 most fields in tau             5 ln of the sketches' base
--       3 most records in the outbox     6 prefix of those of runtime / tau
--       7 number of this writer's last record that was applied, as far as it knows
--       8 number of counters, then two for each: its name, what to add;
--       then eight for each record:
--       its number, increasing; record (JSON), '' to learn only; runtime in seconds, ''
--       to learn nothing; task type; task name; the type's first tau; the tau that its
--       deadline was computed with, '' for none; the task's id, '' if the task goes on
-- Returns one line for each record: '' if nothing was learned, else 'TB TA NB NA' with
-- tau before and after of the type and of the name in seconds, '-' for one that was not
-- learned; 'dup' for a record that was applied before. Only 'lost', and nothing is
-- applied, if records up to ARGV[7] were lost, as in a failover.
--
-- Closes three races: lost updates of a tau that two runs read at the same time, a batch
-- that is delivered again because the reply to the first delivery was lost, and one that
-- comes after another which this server has lost.

local SEQ_TTL = 30 * 86400 -- seconds for which a silent writer's number is kept

local rate, most_fields, most_records = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
-- Fail on a key of the wrong type here, before anything is written, and name it.
local fields = redis.pcall('HLEN', KEYS[1])
local waiting = redis.pcall('XLEN', KEYS[4])
for key, held in pairs({[KEYS[1]] = fields, [KEYS[4]] = waiting}) do
  if type(held) == 'table' then
    return redis.error_reply(held.err .. ': ' .. key)
  end
end
local last = KEYS[11] and tonumber(redis.call('GET', KEYS[11]) or '0') or 0
local applied, first_record = last, 9 + 2 * tonumber(ARGV[8])
-- Without the key nothing is known: it may have expired, or been evicted.
if last > 0 and last < tonumber(ARGV[7]) then
  return 'lost'
end

local taus, counts, deviations, sketches, refused = {}, {}, {}, {}, 0

local function text(number)
  return string.format('%.17g', number)
end

-- A number from a hash that users can edit; nil if it is not a valid one.
local function sound(value, least)
  local number = tonumber(value or '')
  return number and number >= least and number < math.huge and number or nil
end

local function bucket_of(value)
  -- + 0, because the ceiling of -0.3 is -0, which would be another field.
  return value > 1e-9 and math.ceil(math.log(value) / tonumber(ARGV[5])) + 0 or 'zero'
end

-- Once a sketch of ratios has so many, all its counts are halved, so that old ratios fade:
-- runtimes drift, and so does their spread.
local MOST_RATIOS = 1000
-- The first ratios of a type, which are forgotten: far too great, or too small, while its tau
-- was still on the way from the first one.
local EARLY_RATIOS = 50

local function halve(key)
  local flat, buckets = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    local bucket = flat[i] == 'zero' and -math.huge or tonumber(flat[i])
    if bucket then buckets[#buckets + 1] = {bucket, flat[i], tonumber(flat[i + 1]) or 0} end
  end
  table.sort(buckets, function(a, b) return a[1] < b[1] end)
  -- The remainder of a bucket is carried over to the next one, which preserves the ranks.
  local total, rest = 0, 0
  for _, bucket in ipairs(buckets) do
    local both = bucket[3] + rest
    local half = math.floor(both / 2)
    total, rest = total + half, both % 2
    if half > 0 then
      redis.call('HSET', key, bucket[2], half)
    else
      redis.call('HDEL', key, bucket[2])
    end
  end
  redis.call('HSET', key, 'n', total)
end

local ratios = {}
local function learn_ratio(task_type, ratio)
  for _, field in ipairs({task_type, '*'}) do
    ratios[field] = ratios[field] or {}
    local bucket = bucket_of(ratio)
    ratios[field][bucket] = (ratios[field][bucket] or 0) + 1
  end
end

-- Forget the name with the fewest runs, if there is one. (Without a tau of its own, a name uses
-- its type's.)
local function forget_a_name()
  local least, fewest
  local function see(field)
    local runs = redis.pcall('HGET', KEYS[2], field)
    runs = (type(runs) == 'string' and tonumber(runs) or 0) + (counts[field] or 0)
    if string.find(field, '/', 1, true) and not (least and fewest <= runs) then
      least, fewest = field, runs
    end
  end
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do see(field) end
  for field in pairs(taus) do see(field) end
  if least then
    taus[least], counts[least], fields = nil, nil, fields - 1
    redis.call('HDEL', KEYS[1], least)
    redis.pcall('HDEL', KEYS[2], least)
    redis.pcall('HDEL', KEYS[3], least)
    redis.call('DEL', ARGV[4] .. least)
  end
end

local function learn(field, actual, first, is_type)
  local tau = taus[field]
  if not tau then
    local known = redis.call('HGET', KEYS[1], field)
    if not known then
      if is_type and fields >= most_fields then
        forget_a_name()
      end
      if fields >= most_fields then
        refused = refused + 1
        return '-', '-'
      end
      fields = fields + 1
    end
    tau = sound(known, 0)
    if not tau or tau == 0 then
      tau = first
    end
    local deviation = redis.pcall('HGET', KEYS[3], field)
    deviations[field] = type(deviation) == 'string' and sound(deviation, 0) or nil
    counts[field], sketches[field] = 0, {}
  end
  local new = rate * actual + (1 - rate) * tau
  local off = math.abs(actual - tau)
  local deviation = deviations[field]
  deviations[field] = deviation and rate * off + (1 - rate) * deviation or off
  taus[field], counts[field] = new, counts[field] + 1
  local bucket = bucket_of(actual)
  sketches[field][bucket] = (sketches[field][bucket] or 0) + 1
  return text(tau), text(new)
end

local answers, ended = {}, {}
for i = first_record, #ARGV, 8 do
  local number, record, actual, task_type, name, first, used, id = unpack(ARGV, i, i + 7)
  local answer = 'dup'
  number = tonumber(number)
  if number > last then
    last, answer = number, ''
    if actual ~= '' then
      actual, first, used = tonumber(actual), tonumber(first), tonumber(used)
      local before, after = learn(task_type, actual, first, true)
      local own_before, own_after = learn(task_type .. '/' .. name, actual, first)
      answer = table.concat({before, after, own_before, own_after}, ' ')
      -- A ratio to the first tau, before anything was learned, would be meaningless.
      if used and used > 0 and used ~= first and before ~= '-' then
        learn_ratio(task_type, actual / used)
      end
    end
    if id ~= '' then
      ended[#ended + 1] = id
    end
    if record ~= '' then
      if waiting >= most_records then
        local dropped = redis.call('XTRIM', KEYS[4], 'MAXLEN', most_records - 1)
        redis.pcall('HINCRBY', KEYS[5], 'outbox_dropped', dropped)
      end
      if answer == '' then
        redis.call('XADD', KEYS[4], '*', 'r', record)
      else
        redis.call('XADD', KEYS[4], '*', 'r', record, 'l', answer)
      end
      waiting = waiting + 1
    end
  end
  answers[#answers + 1] = answer
end

for field, tau in pairs(taus) do
  redis.call('HSET', KEYS[1], field, text(tau))
  -- pcall: a key of the wrong type must not cost a record.
  redis.pcall('HINCRBY', KEYS[2], field, counts[field])
  redis.pcall('HSET', KEYS[3], field, text(deviations[field]))
  for bucket, n in pairs(sketches[field]) do
    redis.pcall('HINCRBY', ARGV[4] .. field, bucket, n)
  end
end
for field, buckets in pairs(ratios) do
  local key, added = ARGV[6] .. field, 0
  for bucket, n in pairs(buckets) do
    redis.pcall('HINCRBY', key, bucket, n)
    added = added + n
  end
  local held = redis.pcall('HINCRBY', key, 'n', added)
  if type(held) == 'number' then
    if field ~= '*' and held >= EARLY_RATIOS and held - added < EARLY_RATIOS then
      redis.call('DEL', key)
      redis.call('HSET', key, 'n', EARLY_RATIOS)
    elseif held >= MOST_RATIOS then
      halve(key)
    end
  end
end
if refused > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'tau_keys_refused', refused)
end
if last > applied then
  for i = 9, first_record - 1, 2 do
    redis.pcall('HINCRBY', KEYS[5], ARGV[i], ARGV[i + 1])
  end
end
if #ended > 0 then
  close({unpack(KEYS, 6, 10)}, ended)
end
if KEYS[11] and last > applied then
  redis.call('SET', KEYS[11], last, 'EX', SEQ_TTL)
end
return table.concat(answers, '\n')
