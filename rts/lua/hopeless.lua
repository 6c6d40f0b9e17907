-- Count the messages in deadline order that are hopeless now, in place: they are not sent
-- over the wire.
--
-- KEYS: hopeful. ARGV: 1 messages to look at from the first one on; 2 messages to look at
--   of all others, one at random of each stretch of the order, which it stands for.
-- Returns the number, which is an estimate where there are more than both.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local function hopeless(rank)
  local member = redis.call('ZRANGE', KEYS[1], rank, rank)[1]
  return now > tonumber(string.sub(member, 17, 30)) and 1 or 0
end

local size = redis.call('ZCARD', KEYS[1])
local first = math.min(size, tonumber(ARGV[1]))
local count = 0
for rank = 0, first - 1 do count = count + hopeless(rank) end
local others = size - first
local looks = math.min(others, tonumber(ARGV[2]))
local found = 0
for look = 0, looks - 1 do
  found = found + hopeless(first + math.floor((look + math.random()) * others / looks))
end
if found > 0 then count = count + math.floor(found * others / looks + 0.5) end
return count
