-- Removes outbox records that are in the ledger, and counts them for the metrics.
--
-- KEYS  1 outbox, stream; 2 metrics, 3 types, 4 names, 5 queues, 6 judged: see count.lua
--       7 counters, hash: name -> number
-- ARGV  1 consumer group           4 bounds of durations, 5 of lateness, seconds
--       2 most task names          then the ids of the entries, prefixed with - if the
--       3 most members of judged   record is not its task's verdict, with = if it is not
--                                  its run's own end either, which is in the ledger
--
-- Closes the races between two drains that have the same record (the one that removes it
-- counts it), and between a verdict from elsewhere (overdue, lost, killed) and the task's
-- own end, which is not a second verdict.

-- The places in a record of the fields of Execution in records.py.
local RUN_ID, TASK_ID, NAME, TASK_TYPE, ARRIVAL, DEADLINE, QUEUE = 1, 2, 3, 4, 8, 9, 11
local STARTED_AT, COMPLETED_AT, RUNTIME, STATE, CAUSE, RAN = 18, 20, 21, 24, 25, 26

local outbox, judged = KEYS[1], KEYS[6]
local keys = {
  metrics = KEYS[2], types = KEYS[3], names = KEYS[4], queues = KEYS[5],
  most_names = tonumber(ARGV[2]),
}
local durations, latenesses = bounds_of(ARGV[4]), bounds_of(ARGV[5])
local now = tonumber(redis.call('TIME')[1])
-- As in records.py.
local NOT_FINAL = {RETRY = true, REPLACED = true, REQUEUED = true}
local PROVISIONAL = {lost = true, killed = true, time_limit = true, terminated = true}

local function number(value)
  return type(value) == 'number' and value == value and math.abs(value) < math.huge and value
end

local function count_run(r, task_type, name, state, provisional)
  local run = 'run\n' .. tostring(r[RUN_ID])
  local known = redis.call('ZSCORE', judged, run)
  if provisional and not known then
    redis.call('ZADD', judged, now, run)
  elseif known and not provisional then
    redis.call('ZREM', judged, run)
  end
  if known then
    return
  end
  count('runs', task_type, name, label(state, keys, keys.types .. ':states', MOST_TYPES))
  local runtime = number(r[RUNTIME])
  local arrival, started_at = number(r[ARRIVAL]), number(r[STARTED_AT])
  if runtime then
    observe('runtime', task_type, runtime, durations)
  end
  if arrival and started_at then
    observe('queueing_delay', task_type, math.max(0, started_at - arrival), durations)
  end
end

local function count_verdict(r, task_type, state, provisional, completed_at)
  local task_id = tostring(r[TASK_ID])
  local known, end_of = redis.call('ZSCORE', judged, task_id), 'end\n' .. task_id
  local had_end = known and redis.call('ZSCORE', judged, end_of)
  if provisional or state == 'IGNORED' then -- the task may go on under its id
    redis.call('ZADD', judged, now, task_id, now, end_of)
  elseif known then
    redis.call('ZREM', judged, task_id, end_of)
  end
  local deadline, cause = number(r[DEADLINE]), r[CAUSE]
  if deadline and not had_end then
    observe('lateness', task_type, completed_at - deadline, latenesses)
  end
  if not known then
    local missed = type(cause) == 'string' and cause
      or (not deadline or completed_at > deadline) and 'late' or 'met'
    verdict(keys, r[TASK_TYPE], r[NAME], r[QUEUE], missed)
  end
end

local function count_record(r, mark)
  local state, completed_at = tostring(r[STATE]), number(r[COMPLETED_AT])
  local provisional = state == 'LOST' or PROVISIONAL[r[CAUSE]]
  local task_type = label(r[TASK_TYPE], keys, keys.types, MOST_TYPES)
  local name = label(r[NAME], keys, keys.names, keys.most_names)
  if r[RAN] ~= false and mark ~= '=' then
    count_run(r, task_type, name, state, provisional)
  end
  if not mark and completed_at and not NOT_FINAL[state] then
    count_verdict(r, task_type, state, provisional, completed_at)
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
        if record and #record >= STATE then
          try(count_record, record, mark)
        end
      end
    end
  end
end
redis.call('XACK', outbox, ARGV[1], unpack(ids))
bound_judged(judged, tonumber(ARGV[3]), KEYS[7])
keep_counts(keys, KEYS[7])
