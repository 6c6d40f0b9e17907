-- Counts the messages of a queue that are hopeless now, without sending them to the client.
--
-- KEYS: hopeful. ARGV: 1 first messages to count exactly; 2 size of the sample of the rest,
--   which is cut into as many equal ranges of ranks, with one random message from each;
--   3 bytes after which each of the two is cut short.
-- Returns the number, an estimate if more messages wait than both together.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local budget, bytes = tonumber(ARGV[3]), 0
local function hopeless(rank)
  local member = redis.call('ZRANGE', KEYS[1], rank, rank)[1]
  bytes = bytes + #member
  return now > tonumber(string.sub(member, 17, 30)) and 1 or 0
end

local size = redis.call('ZCARD', KEYS[1])
local first = math.min(size, tonumber(ARGV[1]))
local count, read = 0, 0
while read < first and bytes < budget do
  count = count + hopeless(read)
  read = read + 1
end
local others = size - read
local sample = math.min(others, tonumber(ARGV[2]))
if sample * bytes > budget * read then  -- by the mean size of the first ones
  sample = math.max(1, math.floor(budget * read / bytes))
end
local found = 0
for i = 0, sample - 1 do
  found = found + hopeless(read + math.floor((i + math.random()) * others / sample))
end
if found > 0 then count = count + math.floor(found * others / sample + 0.5) end
return count
