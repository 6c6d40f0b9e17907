-- Removes ended tasks from the open ones. A library, prepended to other scripts.
--
-- open, overdue  sorted sets of task ids
-- info           hash, task id -> queue, newline, what is known of the task
-- counts         hash, 'open QUEUE' and 'overdue QUEUE' -> number of tasks
-- closed         sorted set, id of a task that ended a moment ago, by instant
--
-- Uses pcall: a key of the wrong type must not cost a record.
--
-- Closes the race between a publisher, which registers its tasks twice a second, and a
-- task that ends sooner: it would stay open until its deadline. So it would if the publisher
-- registers it once more, since the first reply was lost; or later than ever, as Redis was away.

local CLOSED_S = 60 -- seconds by which a registration may be late
local LATEST_S, MOST_LATEST = 2, 5000 -- what may not be registered yet as an outage begins

-- After an outage, publishers register what they could not before: the last tasks that ended
-- then are remembered a while longer.
local function keep_latest(closed, now)
  local latest = redis.pcall('ZRANGE', closed, -1, -1, 'WITHSCORES')[2]
  local as_if_ended = now - CLOSED_S / 2
  if latest and tonumber(latest) < as_if_ended then
    local ids = redis.pcall(
      'ZRANGEBYSCORE', closed, latest - LATEST_S, '+inf', 'LIMIT', 0, MOST_LATEST)
    for _, id in ipairs(ids) do
      redis.pcall('ZADD', closed, as_if_ended, id)
    end
  end
end

local function close(keys, ids)
  local open, overdue, info, counts, closed = unpack(keys)
  local now = tonumber(redis.call('TIME')[1])
  local changes = {}
  keep_latest(closed, now)
  for _, id in ipairs(ids) do
    local was
    if redis.pcall('ZREM', open, id) == 1 then
      was = 'open '
    elseif redis.pcall('ZREM', overdue, id) == 1 then
      was = 'overdue '
    end
    if was then
      local known = redis.pcall('HGET', info, id)
      redis.pcall('HDEL', info, id)
      if type(known) == 'string' then
        local field = was .. string.match(known, '^[^\n]*')
        changes[field] = (changes[field] or 0) - 1
      end
    end
    redis.pcall('ZADD', closed, now, id)
  end
  for field, n in pairs(changes) do
    redis.pcall('HINCRBY', counts, field, n)
  end
  local old = redis.pcall('ZCOUNT', closed, '-inf', now - CLOSED_S)
  if type(old) == 'number' and old > 0 then -- a little at a time, after a silence
    redis.pcall('ZREMRANGEBYRANK', closed, 0, math.min(old, 1000) - 1)
  end
end
