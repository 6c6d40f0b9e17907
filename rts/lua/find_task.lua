-- Finds a task among waiting messages, without sending them to the client.
--
-- KEYS: a list or a sorted set. ARGV: 1, 2 the first and last rank to search, in the order of
--   consumption (a list is consumed from its right end); then the task's id as it may stand in
--   JSON, quotes included: with what is not ASCII escaped, and as it is.
-- Returns {rank, message}; empty if the task is not among them.
local set = redis.call('TYPE', KEYS[1])['ok'] == 'zset'
local first, last = tonumber(ARGV[1]), tonumber(ARGV[2])
local texts
if set then
  texts = redis.call('ZRANGE', KEYS[1], first, last)
else
  texts = redis.call('LRANGE', KEYS[1], -1 - last, -1 - first)
end

-- First the id alone, which most messages do not contain; then as the value of the JSON key
-- "id", as other keys (root_id, parent_id) hold the ids of related tasks.
local function is_task(text, id)
  return string.find(text, id, 1, true)
    and (string.find(text, '"id": ' .. id, 1, true) or string.find(text, '"id":' .. id, 1, true))
end

for i, text in ipairs(texts) do
  for j = 3, #ARGV do
    if is_task(text, ARGV[j]) then
      return {set and first + i - 1 or first + #texts - i, text}
    end
  end
end
return {}
