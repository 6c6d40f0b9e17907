-- Removes outbox records that are in the ledger, and counts them for the metrics.
--
-- KEYS  1 outbox, stream; 2 metrics, 3 types, 4 names, 5 queues: see count.lua
--       6 judged   sorted set, by instant: id of a task whose verdict is not from its own
--                  end; 'end' and its id if that verdict was an end; 'run' and the id of a
--                  run that ended so
--       7 counters hash, name -> number
-- ARGV  1 consumer group           4 bounds of durations, 5 of lateness, seconds
--       2 most task names          then the ids of the entries, prefixed with - if the
--       3 most members of judged   record is not its task's verdict, with = if it is not
--                                  its run's own end either, which is in the ledger
--
-- Closes the races between two drains that have the same record (the one that removes it
-- counts it), and between a verdict from elsewhere (overdue, lost, killed) and the task's
-- own end, which is not a second verdict.

local outbox, judged = KEYS[1], KEYS[6]
local keys = {
  metrics = KEYS[2], types = KEYS[3], names = KEYS[4], queues = KEYS[5],
  most_names = tonumber(ARGV[2]),
}
local durations, latenesses = bounds_of(ARGV[4]), bounds_of(ARGV[5])
local now = tonumber(redis.call('TIME')[1])
local NOT_FINAL = {RETRY = true, REPLACED = true, REQUEUED = true}
local FOREIGN = {lost = true, killed = true, time_limit = true, terminated = true}

local function number(value)
  return type(value) == 'number' and value == value and math.abs(value) < math.huge and value
end

local function count_record(r, mark)
  local task_id = tostring(r[2])
  local state, cause, completed_at = tostring(r[24]), r[25], number(r[20])
  local foreign = state == 'LOST' or FOREIGN[cause]
  local task_type = label(r[4], keys, keys.types, MOST_TYPES)
  local name = label(r[3], keys, keys.names, keys.most_names)
  if r[26] ~= false and mark ~= '=' then
    local run = 'run\n' .. tostring(r[1])
    local known = redis.call('ZSCORE', judged, run)
    if foreign and not known then
      redis.call('ZADD', judged, now, run)
    elseif known and not foreign then
      redis.call('ZREM', judged, run)
    end
    if not known then
      count('runs', task_type, name, label(state, keys, keys.types .. ':states', MOST_TYPES))
      local runtime, arrival, started_at = number(r[21]), number(r[8]), number(r[18])
      if runtime then
        observe('runtime', task_type, runtime, durations)
      end
      if arrival and started_at then
        observe('queueing_delay', task_type, math.max(0, started_at - arrival), durations)
      end
    end
  end
  if mark or not completed_at or NOT_FINAL[state] then
    return
  end
  local known, end_of = redis.call('ZSCORE', judged, task_id), 'end\n' .. task_id
  local had_end = known and redis.call('ZSCORE', judged, end_of)
  if foreign or state == 'IGNORED' then -- the task may go on under its id
    redis.call('ZADD', judged, now, task_id, now, end_of)
  elseif known then
    redis.call('ZREM', judged, task_id, end_of)
  end
  local deadline = number(r[9])
  if deadline and not had_end then
    observe('lateness', task_type, completed_at - deadline, latenesses)
  end
  if not known then
    local missed = type(cause) == 'string' and cause
      or (not deadline or completed_at > deadline) and 'late' or 'met'
    verdict(keys, r[4], r[3], r[11], missed)
  end
end

local ids = {}
for i = 6, #ARGV do
  local mark, id = string.match(ARGV[i], '^([-=]?)(.*)$')
  mark = mark ~= '' and mark
  local entry = redis.call('XRANGE', outbox, id, id)[1]
  ids[#ids + 1] = id
  if redis.call('XDEL', outbox, id) == 1 then
    for f = 1, #entry[2], 2 do
      if entry[2][f] == 'r' then
        local record = decoded(entry[2][f + 1])
        if record and #record >= 24 then
          try(count_record, record, mark)
        end
      end
    end
  end
end
if #ids > 0 then
  redis.call('XACK', outbox, ARGV[1], unpack(ids))
end
local remembered = redis.pcall('ZCARD', judged)
local surplus = type(remembered) == 'number' and remembered - tonumber(ARGV[3]) or 0
surplus = math.min(surplus, 5000) -- where the limit was lowered
if surplus > 0 then
  redis.call('ZREMRANGEBYRANK', judged, 0, surplus - 1)
  redis.pcall('HINCRBY', KEYS[7], 'verdicts_forgotten', surplus)
end
keep_counts(keys, KEYS[7])
