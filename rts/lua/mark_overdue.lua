-- Gives open tasks whose deadline has passed the verdict overdue, once each.
--
-- KEYS  1 open     sorted set, task id by deadline
--       2 overdue  sorted set, id of an overdue task, by the instant of its verdict
--       3 info     hash, task id -> queue, newline, what is known of the task
--       4 counts   hash, 'open QUEUE' and 'overdue QUEUE' -> number of tasks
--       5 judged   see count.lua
--       6 events   capped stream
--       7 counters hash, name -> number
--       8 metrics, 9 types, 10 names, 11 queues: see count.lua
-- ARGV  1 now, epoch seconds              4 seconds for which an overdue task is kept
--       2 most overdue tasks              5 most task names
--       3 most events                     6 most members of judged
--       then two for each task: id; event (JSON), '' for a task that has ended, which is
--       only removed
-- Returns the number of new verdicts.
--
-- Closes the races between two companions that sweep at the same time, and with the task's
-- own end (which removes it from the open ones). A sweep that died halfway is repeated;
-- whoever gets here first adds the event.

local JUDGED_S = 7 * 86400 -- seconds after a verdict in which an end is not a second one

local open, overdue, info, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local judged, events = KEYS[5], KEYS[6]
local now = tonumber(ARGV[1])
local changes, new = {}, 0
-- Fail on a key of the wrong type here, before anything is written. (The caller has used the
-- others.)
redis.call('ZCARD', judged)
local keys = {
  metrics = KEYS[8], types = KEYS[9], names = KEYS[10], queues = KEYS[11],
  most_names = tonumber(ARGV[5]),
}

local function change(what, id, n)
  local known = redis.call('HGET', info, id)
  if known then
    local field = what .. string.match(known, '^[^\n]*')
    changes[field] = (changes[field] or 0) + n
  end
end

for i = 7, #ARGV, 2 do
  local id, event = ARGV[i], ARGV[i + 1]
  if redis.call('ZREM', open, id) == 1 then
    change('open ', id, -1)
    if event == '' then
      redis.call('HDEL', info, id)
    else
      redis.call('ZADD', overdue, now, id)
      change('overdue ', id, 1)
      if redis.call('ZADD', judged, 'NX', now, id) == 1 then
        try(redis.call, 'XADD', events, 'MAXLEN', '~', ARGV[3], '*', 'e', event)
        local task = decoded(event) or {}
        try(verdict, keys, task.task_type, task.name, task.queue, 'overdue')
        new = new + 1
      end
    end
  end
end

local function forget(ids)
  for _, id in ipairs(ids) do
    redis.call('ZREM', overdue, id)
    change('overdue ', id, -1)
    redis.call('HDEL', info, id)
  end
end

-- Tasks that never end are dropped eventually, a limited number per call.
forget(redis.call('ZRANGEBYSCORE', overdue, '-inf', now - tonumber(ARGV[4]), 'LIMIT', 0, 500))
local surplus = redis.call('ZCARD', overdue) - tonumber(ARGV[2])
if surplus > 0 then
  forget(redis.call('ZRANGE', overdue, 0, math.min(surplus, 1000) - 1))
end
local old = math.min(redis.call('ZCOUNT', judged, '-inf', now - JUDGED_S), 5000)
if old > 0 then
  redis.call('ZREMRANGEBYRANK', judged, 0, old - 1)
end
bound_judged(judged, tonumber(ARGV[6]), KEYS[7])
for field, n in pairs(changes) do
  if n ~= 0 then
    try(redis.call, 'HINCRBY', counts, field, n)
  end
end
keep_counts(keys, KEYS[7])
if new > 0 then
  redis.pcall('HINCRBY', KEYS[7], 'tasks_overdue', new)
end
return new
