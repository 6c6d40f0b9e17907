-- Find a task among waiting messages, without sending them to the client.
--
-- KEYS: a list or a sorted set. ARGV: 1 the task's id; 2, 3 the first and last rank to
--   search, in the order of consumption (a list is consumed from its right end).
-- Returns {rank, message}; empty if the task is not among them.
local set = redis.call('TYPE', KEYS[1])['ok'] == 'zset'
local first, last = tonumber(ARGV[2]), tonumber(ARGV[3])
local texts
if set then
  texts = redis.call('ZRANGE', KEYS[1], first, last)
else
  texts = redis.call('LRANGE', KEYS[1], -1 - last, -1 - first)
end
-- First the plain id, which most messages do not contain; then as the value of the JSON key
-- "id", as other keys (root_id, parent_id) hold the ids of related tasks.
local id = ARGV[1]
local spaced, tight = '"id": "' .. id .. '"', '"id":"' .. id .. '"'
for i, text in ipairs(texts) do
  if string.find(text, id, 1, true)
      and (string.find(text, spaced, 1, true) or string.find(text, tight, 1, true)) then
    return {set and first + i - 1 or first + #texts - i, text}
  end
end
return {}
