-- Takes the next message of the first queue that has one and marks it as unacknowledged.
--
-- KEYS: unacked, unacked_index; then for each queue, in the order to try them: hopeful,
--   demoted, bell, turns, refused, and its plain lists (ARGV[8] of them: one for each
--   priority, the one served first comes first).
-- ARGV: 1 score for unacked_index, epoch seconds; 2 "demote", "keep" or "drop"; 3 whether
--   a demoted message may be taken (0, 1); 4 every n-th claim serves the demoted message
--   that has waited longest (0: none); 5 weight of tau in the order; 6 share of tau that must be left (HOPE);
--   7 messages to examine at most, a large one counting as several; 8 plain lists per
--   queue;
--   then for each queue: whether to mark it as unacknowledged (0, 1), its horizon in
--   seconds, its name.
--
-- Returns {state, index of the queue, fate, member, adopted, refused}. state: "message",
-- "none", "again" (ARGV[7] is used up), "capped" (only demoted messages wait, and none may
-- be taken). fate: "hopeful", "demoted" or "drop". adopted, refused: numbers of messages
-- moved from plain lists into the order, or to the refused ones.
--
-- Closes the race between taking a message and marking it, in which the death of a worker
-- would lose it.
local unacked, unacked_index = KEYS[1], KEYS[2]
local mode, may, every = ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
local work, hope = tonumber(ARGV[5]), tonumber(ARGV[6])
local budget, lists = tonumber(ARGV[7]), tonumber(ARGV[8])
-- The places of a queue's keys after *base*, before its plain lists; and of its arguments.
local HOPEFUL, DEMOTED, BELL, TURNS, REFUSED = 1, 2, 3, 4, 5
local TRACKED, HORIZON, NAME = 6, 7, 8
local stride = 5 + lists
local queues = (#KEYS - 2) / stride
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local adopted, refused = 0, 0
local never = 9999999999.999

-- Bytes whose reading or moving takes Redis about as long as the rest of one examination.
local LARGE = 4096
local function examined(text)
  budget = budget - 1 - math.floor(#text / LARGE)
end

local function instant(value)
  value = tonumber(value)
  if value and value > 0 and value <= 253402300799 then return value end
end

-- A key that messages are moved to inherits the TTL of the one they come from.
local function expire(key, ttl)
  if ttl > 0 then redis.call('PEXPIRE', key, ttl) end
end

-- Move messages from the plain lists, which producers without the deadline order push to,
-- into the order. If one has no deadline, its arrival is stored in it, to keep its position.
local function adopt(base, horizon, name)
  if redis.call('EXISTS', unpack(KEYS, base + 6, base + stride)) == 0 then return end
  local hopeful, unreadable = KEYS[base + HOPEFUL], KEYS[base + REFUSED]
  for list = base + 6, base + stride do
    local ttl = redis.call('PTTL', KEYS[list])
    while budget > 0 do
      local payload = redis.call('RPOP', KEYS[list])
      if not payload then break end
      examined(payload)
      adopted = adopted + 1
      local message, replaced = decoded(payload)
      local properties = message and message['properties']
      local tag = type(properties) == 'table' and properties['delivery_tag']
      -- No one can acknowledge a tag with a lone surrogate.
      local readable = type(tag) == 'string' and (not replaced or
        not string.find(tag, '?', 1, true) or string.find(payload, '"' .. tag .. '"', 1, true))
      if not readable or #tag > 65535 or type(message['body']) ~= 'string' then
        redis.call('LPUSH', unreadable, payload)
        redis.call('LTRIM', unreadable, 0, 999)  -- MOST_REFUSED of layout.py
        refused = refused + 1
      else
        local headers = message['headers']
        if type(headers) ~= 'table' then headers = {} end
        local deadline, arrival = instant(headers['rts_deadline']), instant(headers['rts_arrival'])
        local tau = tonumber(headers['rts_tau'])
        local score, latest
        if deadline and arrival and tau and tau > 0 and tau < 1e9 then
          score, latest = deadline + work * tau, math.max(0, deadline - hope * tau)
        else
          arrival = instant(message['rts_arrival'])
          if not arrival then
            arrival = now + adopted / 1e6
            payload = string.match(payload, '^(.*)}%s*$') ..
              string.format(',"rts_arrival":%.6f}', arrival)
          end
          score, latest = arrival + horizon, never
        end
        redis.call('ZADD', hopeful, string.format('%.17g', score), table.concat({
          string.format('%016x%014.3f%04x', arrival * 1e6, math.min(latest, never), #tag), tag,
          '[', payload, ',"",', cjson.encode(name), ']'}))
        expire(hopeful, ttl)
      end
    end
  end
end

-- Wake another consumer while messages are left. Checks all queues, as this one may have
-- been woken by the bell of another queue than the one it takes from.
local function ring()
  for base = 2, #KEYS - stride, stride do
    local hopeful, demoted, bell = KEYS[base + HOPEFUL], KEYS[base + DEMOTED], KEYS[base + BELL]
    if redis.call('EXISTS', hopeful, demoted) > 0 and redis.call('EXISTS', bell) == 0 then
      redis.pcall('LPUSH', bell, '1')  -- fails if Redis is out of memory
      expire(bell, math.max(redis.call('PTTL', hopeful), redis.call('PTTL', demoted)))
    end
  end
end

local function take(queue, set, member, fate)
  -- It was demoted before "drop" was configured.
  if mode == 'drop' and fate == 'demoted' then fate = 'drop' end
  redis.call('ZREM', set, member)
  if ARGV[TRACKED + 3 * queue] == '1' then
    local length = tonumber(string.sub(member, 31, 34), 16)
    local tag = string.sub(member, 35, 34 + length)
    redis.call('HSET', unacked, tag, string.sub(member, 35 + length))
    redis.call('ZADD', unacked_index, ARGV[1], tag)
  end
  ring()
  return {'message', queue - 1, fate, member, adopted, refused}
end

local function is_hopeless(member)
  return mode ~= 'keep' and now > tonumber(string.sub(member, 17, 30))
end

local function first(set)
  return redis.call('ZRANGE', set, 0, 0)[1]
end

local function demoted_of(queue)
  return KEYS[2 + (queue - 1) * stride + DEMOTED]
end

local function take_longest_waiting()
  local queue, arrival = 0, math.huge
  for other = 1, queues do
    local score = redis.call('ZRANGE', demoted_of(other), 0, 0, 'WITHSCORES')[2]
    if score and tonumber(score) < arrival then queue, arrival = other, tonumber(score) end
  end
  return take(queue, demoted_of(queue), first(demoted_of(queue)), 'demoted')
end

-- A claim counts once, however many queues hold demoted messages.
local counted = not may or every == 0
for queue = 1, queues do
  local base = 2 + (queue - 1) * stride
  adopt(base, tonumber(ARGV[HORIZON + 3 * queue]), ARGV[NAME + 3 * queue])
  local hopeful, demoted = KEYS[base + HOPEFUL], KEYS[base + DEMOTED]
  local member = first(hopeful)
  while member and is_hopeless(member) do
    if mode == 'drop' then return take(queue, hopeful, member, 'drop') end
    if budget <= 0 then return {'again', 0, '', '', adopted, refused} end
    examined(member)
    local ttl = redis.call('PTTL', hopeful)
    redis.call('ZREM', hopeful, member)
    redis.call('ZADD', demoted,
      string.format('%.0f', tonumber(string.sub(member, 1, 16), 16)), member)
    expire(demoted, ttl)
    member = first(hopeful)
  end
  if not counted and redis.call('EXISTS', demoted) == 1 then
    counted = true
    local turn = redis.pcall('INCR', KEYS[base + TURNS])  -- fails if Redis is out of memory
    if turn == 1 then expire(KEYS[base + TURNS], redis.call('PTTL', demoted)) end
    if type(turn) == 'number' and turn % every == 0 then
      return take_longest_waiting()
    end
  end
  if member then return take(queue, hopeful, member, 'hopeful') end
end
local capped = false
for queue = 1, queues do
  local demoted = demoted_of(queue)
  local member = first(demoted)
  if member and may then return take(queue, demoted, member, 'demoted') end
  capped = capped or (member and true)
end
if capped then ring() end  -- another worker may take it
local state = budget <= 0 and 'again' or capped and 'capped' or 'none'
return {state, 0, '', '', adopted, refused}
