-- Notes tasks that were published and have not ended.
--
-- KEYS  1 open     sorted set, task id by deadline
--       2 info     hash, task id -> queue, newline, what is known of it
--       3 counts   hash, 'open QUEUE' and 'overdue QUEUE' -> number of tasks
--       4 closed   sorted set, ids of tasks that ended a moment ago
--       5 judged   sorted set, ids of tasks that have a verdict without an end
--       6 counters hash, name -> number
-- ARGV  1 most open tasks; then five for each task: id, deadline in epoch seconds, queue,
--       what is known of it (JSON), '1' where it takes the place of another task of its id
-- Returns the number of tasks that were noted.
--
-- Closes the race with the end of a task, which may come first. A task that is
-- published again (a retry) keeps its first deadline. One that takes another's place
-- has one of its own; it is noted only while the other one is, since it may have ended.

local MOST_QUEUES = 1000 -- that are counted apart; the others count as one

local open, info, counts, closed, judged = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local room = tonumber(ARGV[1]) - redis.call('ZCARD', open)
local noted, refused, labels, added = 0, 0, {}, {}

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

for i = 2, #ARGV, 5 do
  local id = ARGV[i]
  if ARGV[i + 4] == '1' then
    local known = redis.call('ZSCORE', open, id) and redis.call('HGET', info, id)
    if known then
      local before, label = string.match(known, '^[^\n]*'), label_of(ARGV[i + 2])
      redis.call('ZADD', open, ARGV[i + 1], id)
      redis.call('HSET', info, id, label .. '\n' .. ARGV[i + 3])
      added[before] = (added[before] or 0) - 1
      added[label] = added[label] + 1
    end
  elseif not redis.call('ZSCORE', closed, id) and not redis.call('ZSCORE', judged, id) then
    if room <= 0 then
      refused = refused + 1
    elseif redis.call('ZADD', open, 'NX', ARGV[i + 1], id) == 1 then
      local label = label_of(ARGV[i + 2])
      redis.call('HSET', info, id, label .. '\n' .. ARGV[i + 3])
      added[label] = added[label] + 1
      room, noted = room - 1, noted + 1
    end
  end
end
for label, n in pairs(added) do
  redis.call('HINCRBY', counts, 'open ' .. label, n)
end
if refused > 0 then
  redis.pcall('HINCRBY', KEYS[6], 'open_tasks_refused', refused)
end
return noted
