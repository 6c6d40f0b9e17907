-- Measures what waits in a queue's parts and what is unacknowledged, without sending any of it
-- to the client.
--
-- KEYS: unacked, unacked_index; then the parts, lists or sorted sets; then turns, if the parts
--   are those of one queue: a Redis ACL may allow no other key.
-- ARGV: 1 unacknowledged messages to name at most; 2 which ones: "latest", or "spread" evenly
--   over the times at which they were taken; 3 number of parts.
-- Returns {claims counted in turns, number of unacknowledged messages, {tag, score, bytes, …},
--   number of messages of the first part, their mean size in bytes, those of the second, …}.
--   The mean is estimated from a few, evenly spread; 0 for an empty part.
local SAMPLE, ENOUGH = 8, 1048576  -- messages; bytes, as a large message is slow to read

local function spread(size, most)
  local ranks = {}
  most = math.min(size, most)
  for i = 0, most - 1 do
    ranks[#ranks + 1] = most == 1 and 0 or math.floor(i * (size - 1) / (most - 1))
  end
  return ranks
end

local size = redis.call('ZCARD', KEYS[2])
local named = {}
local function name(entries)
  for i = 1, #entries, 2 do
    named[#named + 1] = entries[i]
    named[#named + 1] = entries[i + 1]
    named[#named + 1] = redis.call('HSTRLEN', KEYS[1], entries[i])
  end
end
if ARGV[2] == 'latest' then
  name(redis.call('ZREVRANGE', KEYS[2], 0, tonumber(ARGV[1]) - 1, 'WITHSCORES'))
else
  for _, rank in ipairs(spread(size, tonumber(ARGV[1]))) do
    name(redis.call('ZRANGE', KEYS[2], rank, rank, 'WITHSCORES'))
  end
end
local last = 2 + tonumber(ARGV[3])
local turns = KEYS[last + 1] and tonumber(redis.call('GET', KEYS[last + 1]))
local found = {turns or 0, size, named}
for part = 3, last do
  local key = KEYS[part]
  local set = redis.call('TYPE', key)['ok'] == 'zset'
  local count = redis.call(set and 'ZCARD' or 'LLEN', key)
  local bytes, read = 0, 0
  for _, rank in ipairs(spread(count, SAMPLE)) do
    if bytes < ENOUGH then
      bytes = bytes + #(set and redis.call('ZRANGE', key, rank, rank)[1]
        or redis.call('LINDEX', key, rank))
      read = read + 1
    end
  end
  found[#found + 1] = count
  found[#found + 1] = read > 0 and math.ceil(bytes / read) or 0
end
return found
