-- Reads messages without their bodies, which may be large and are no concern of ours.
--
-- KEYS: for each range its key, a list or a sorted set; then, if there are tags, unacked.
-- ARGV: 1 number of ranges; 2 bytes after which a range is cut short, bodies included; for each
--   range its first and last rank, in the order of consumption (a list is consumed from its
--   right end); then tags.
-- Returns for each range its messages, in that order; then those of the tags, false for one
--   that is not there.
local ranges, budget = tonumber(ARGV[1]), tonumber(ARGV[2])

-- As kombu writes it, the body comes first and is base64, or JSON with escapes.
local function without_body(text)
  local _, open = string.find(text, '"body": "', 1, true)
  local close = open and open < 512 and string.find(text, '"', open + 1, true)
  if not close or string.sub(text, close - 1, close - 1) == '\\' then return text end
  return string.sub(text, 1, open) .. string.sub(text, close)
end

local function range(key, first, last)
  local set = redis.call('TYPE', key)['ok'] == 'zset'
  local found, bytes, step = {}, 0, 1
  while first <= last and bytes < budget do
    local stop = math.min(last, first + step - 1)
    local texts = set and redis.call('ZRANGE', key, first, stop)
      or redis.call('LRANGE', key, -1 - stop, -1 - first)
    if #texts == 0 then break end
    for i = 1, #texts do
      local text = texts[set and i or #texts + 1 - i]
      bytes = bytes + #text
      found[#found + 1] = without_body(text)
    end
    first = stop + 1
    -- No more at once than the mean so far lets expect to fit.
    step = math.max(1, math.min(8 * step, math.floor((budget - bytes) * #found / bytes)))
  end
  return found
end

local found = {}
for i = 1, ranges do
  found[i] = range(KEYS[i], tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i]))
end
for i = 3 + 2 * ranges, #ARGV do
  local text = redis.call('HGET', KEYS[#KEYS], ARGV[i])
  found[#found + 1] = text and without_body(text)
end
return found
