-- Count the messages of a queue that are hopeless now, without sending them to the client.
--
-- KEYS: hopeful. ARGV: 1 first messages to count exactly; 2 size of the sample of the rest,
--   which is cut into as many equal ranges of ranks, with one random message from each.
-- Returns the number, an estimate if more messages wait than both together.
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
local sample = math.min(others, tonumber(ARGV[2]))
local found = 0
for i = 0, sample - 1 do
  found = found + hopeless(first + math.floor((i + math.random()) * others / sample))
end
if found > 0 then count = count + math.floor(found * others / sample + 0.5) end
return count
