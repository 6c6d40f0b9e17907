-- Registers published tasks as open.
--
-- KEYS  1 open     sorted set, task id by deadline
--       2 info     hash, task id -> queue, newline, what is known of the task
--       3 counts   hash, 'open QUEUE' and 'overdue QUEUE' -> number of tasks
--       4 closed   sorted set, ids of tasks that ended a moment ago
--       5 judged   sorted set, ids of tasks with a verdict but no end
--       6 counters hash, name -> number
-- ARGV  1 most open tasks; then five for each task: id, deadline in epoch seconds, queue,
--       what is known of it (JSON), '1' if it replaces another task with the same id
--
-- Closes the race with the end of a task, which may come first. A task that is published
-- again (a retry) keeps its first deadline. A replacement has a deadline of its own, whether
-- it is registered after the task that it replaces or, by another process, before it.

local MOST_QUEUES = 1000 -- counted separately; all others count as 'other'
local SKEW_S = 1 -- tolerated difference between the clocks of two hosts

local open, info, counts, closed, judged = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local room = tonumber(ARGV[1]) - redis.call('ZCARD', open)
local refused, labels, added = 0, {}, {}

local function label_of(queue)
  local label = labels[queue]
  if not label then
    label = string.gsub(queue, '\n', ' ')
    if redis.call('HEXISTS', counts, 'open ' .. label) == 0
        and redis.call('HLEN', counts) >= 2 * MOST_QUEUES then
      label = 'other'
    end
    labels[queue], added[label] = label, added[label] or 0
  end
  return label
end

-- Whether this task has not ended; an earlier one with its id may have. (One that still waits
-- for its eta may end before its arrival.)
local function is_fresh(id, known)
  if redis.call('ZSCORE', judged, id) then return false end
  local ended = redis.call('ZSCORE', closed, id) -- in whole seconds
  if not ended then return true end
  local values = decoded(known) -- the fields of OpenTask in records.py after the id
  local arrival = values and tonumber(values[6]) or -math.huge
  return arrival > ended + 1 + SKEW_S and arrival < redis.call('TIME')[1] + SKEW_S
end

for i = 2, #ARGV, 5 do
  local id, deadline, queue, known, replaces = unpack(ARGV, i, i + 4)
  local other = replaces == '1' and redis.call('ZSCORE', open, id)
    and redis.call('HGET', info, id)
  if other then
    local before, label = string.match(other, '^[^\n]*'), label_of(queue)
    redis.call('ZADD', open, deadline, id)
    redis.call('HSET', info, id, label .. '\n' .. known)
    added[before] = (added[before] or 0) - 1
    added[label] = added[label] + 1
  elseif is_fresh(id, known) then
    if room <= 0 then
      refused = refused + 1
    elseif redis.call('ZADD', open, 'NX', deadline, id) == 1 then
      local label = label_of(queue)
      redis.call('HSET', info, id, label .. '\n' .. known)
      added[label] = added[label] + 1
      room = room - 1
    end
  end
end
for label, n in pairs(added) do
  redis.call('HINCRBY', counts, 'open ' .. label, n)
end
if refused > 0 then
  redis.pcall('HINCRBY', KEYS[6], 'open_tasks_refused', refused)
end
