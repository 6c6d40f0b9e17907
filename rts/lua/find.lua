-- Look for a task among waiting messages, in place: they are not sent over the wire.
--
-- KEYS: a list or a sorted set. ARGV: 1 the task's id; 2, 3 the first and the last rank
--   to look at, in the order in which messages are taken (a list's right end is first).
-- Returns {rank, message}; empty where the task is not among them.
local set = redis.call('TYPE', KEYS[1])['ok'] == 'zset'
local first, last = tonumber(ARGV[2]), tonumber(ARGV[3])
local texts
if set then
  texts = redis.call('ZRANGE', KEYS[1], first, last)
else
  texts = redis.call('LRANGE', KEYS[1], -1 - last, -1 - first)
end
-- The id alone is looked for first: where it is not, that is all. Then as a value of "id"
-- in JSON; other keys end in id too, or hold the ids of relatives.
local id = ARGV[1]
local spaced, tight = '"id": "' .. id .. '"', '"id":"' .. id .. '"'
for i, text in ipairs(texts) do
  if string.find(text, id, 1, true)
      and (string.find(text, spaced, 1, true) or string.find(text, tight, 1, true)) then
    return {set and first + i - 1 or first + #texts - i, text}
  end
end
return {}
