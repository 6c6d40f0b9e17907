-- Counts runs and verdicts for the metrics, and bounds what is remembered so that none counts
-- twice. A library, prepended to other scripts.
--
-- metrics  hash, metric and labels, joined by newlines -> number:
--            runs TYPE NAME STATE, verdicts TYPE NAME QUEUE CAUSE (cause 'met': none),
--            KIND TYPE BOUND and KIND TYPE sum, KIND being one of the histograms
-- types, names, queues   sets of the label values in use; beyond the limits: 'other'
-- judged   sorted set, by instant: id of a task whose verdict is not from its own end; 'end'
--          and its id if that verdict was an end; 'run' and the id of a run that ended so
--
-- Label values are untrusted: they are truncated, and newlines replaced.

local MOST_TYPES, MOST_QUEUES, MOST_TEXT, MOST_FIELDS = 200, 1000, 200, 50000

local counted, summed, labels = {}, {}, {}

local function label(value, keys, set, most)
  local text = 'unknown'
  if type(value) == 'string' and value ~= '' then
    text = (string.gsub(string.sub(value, 1, MOST_TEXT), '\n', ' '))
    if #value > MOST_TEXT then  -- perhaps within a character, of which half is no text
      text = (string.gsub(text, '[\192-\255][\128-\191]*$', ''))
    end
  end
  local known = labels[set .. '\n' .. text]
  if not known then
    known = text
    if redis.call('SISMEMBER', set, text) == 0 then
      if redis.call('SCARD', set) < most and redis.call('HLEN', keys.metrics) < MOST_FIELDS then
        redis.call('SADD', set, text)
      else
        known = 'other'
      end
    end
    labels[set .. '\n' .. text] = known
  end
  return known
end

local function count(...)
  local field = table.concat({...}, '\n')
  counted[field] = (counted[field] or 0) + 1
end

local function observe(kind, task_type, value, bounds)
  local bound = '+Inf'
  for _, least in ipairs(bounds) do
    if value <= least[1] then
      bound = least[2]
      break
    end
  end
  count(kind, task_type, bound)
  local field = table.concat({kind, task_type, 'sum'}, '\n')
  summed[field] = (summed[field] or 0) + value
end

local function bounds_of(text)
  local bounds = {}
  for bound in string.gmatch(text, '%S+') do
    bounds[#bounds + 1] = {tonumber(bound), bound}
  end
  return bounds
end

local function verdict(keys, task_type, name, queue, cause)
  count('verdicts', label(task_type, keys, keys.types, MOST_TYPES),
    label(name, keys, keys.names, keys.most_names),
    label(queue, keys, keys.queues, MOST_QUEUES), cause)
end

-- A key of the wrong type must not keep a record in the outbox, or abort a script halfway:
-- failures to count are only counted themselves.
local uncounted = 0

local function try(work, ...)
  if not pcall(work, ...) then
    uncounted = uncounted + 1
  end
end

-- Removes the oldest of *judged* beyond *most*. It may be of the wrong type.
local function bound_judged(judged, most, counters)
  local remembered = redis.pcall('ZCARD', judged)
  local surplus = type(remembered) == 'number' and remembered - most or 0
  surplus = math.min(surplus, 5000) -- where the limit was lowered
  if surplus > 0 then
    redis.call('ZREMRANGEBYRANK', judged, 0, surplus - 1)
    redis.pcall('HINCRBY', counters, 'verdicts_forgotten', surplus)
  end
end

-- The labels of one metric go together in any number of ways. Once there are enough fields,
-- those that would be new are counted without name and queue.
local function without_names(field)
  local metric, task_type, rest = string.match(field, '^(%w+)\n([^\n]*)\n(.*)$')
  local last = rest and string.match(rest, '[^\n]*$')
  if metric == 'runs' then
    return table.concat({metric, task_type, 'other', last}, '\n')
  elseif metric == 'verdicts' then
    return table.concat({metric, task_type, 'other', 'other', last}, '\n')
  end
  return field
end

local function keep_counts(keys, counters)
  local fields = redis.pcall('HLEN', keys.metrics)
  local full = type(fields) == 'number' and fields >= MOST_FIELDS
  for field, n in pairs(counted) do
    if full and redis.call('HEXISTS', keys.metrics, field) == 0 then
      field = without_names(field)
    end
    try(redis.call, 'HINCRBY', keys.metrics, field, n)
  end
  for field, x in pairs(summed) do
    try(redis.call, 'HINCRBYFLOAT', keys.metrics, field, string.format('%.17g', x))
  end
  if uncounted > 0 then
    redis.pcall('HINCRBY', counters, 'metrics_refused', uncounted)
  end
end
