-- Restores learned taus into a Redis that was wiped, once.
--
-- KEYS  1 generation  string, absent in a new or wiped Redis
--       2 tau, 3 count, 4 deviation  hashes by field (see finish.lua)
-- ARGV  1 value for generation, 2 λ, then groups of five: field, tau in seconds as
--       text, count, deviation in seconds as text, the first tau of the field's type
--
-- Closes the races between several drains that notice the wipe at the same time, and with
-- runs that were learned since. An EMA is linear in its start: adding (1 - λ)^n times the
-- difference of both starts to the result of n updates turns one that started at the first
-- tau into one that started at the snapshot's.

if redis.call('EXISTS', KEYS[1]) == 1 then
  return
end
redis.call('SET', KEYS[1], ARGV[1])
local rate = tonumber(ARGV[2])
for i = 3, #ARGV, 5 do
  local field, tau, count, deviation, first = unpack(ARGV, i, i + 4)
  local has_deviation = tonumber(count) > 0 -- none of a tau that was set by hand
  local since = tonumber(redis.call('HGET', KEYS[2], field))
  if since then
    local n = tonumber(redis.call('HGET', KEYS[3], field)) or 0
    local left = n > 0 and (1 - rate) ^ n or 1
    local off = tonumber(redis.call('HGET', KEYS[4], field)) or 0
    -- After 0 updates it was set by hand, and stays.
    local shift = n > 0 and left * (tonumber(tau) - tonumber(first)) or 0
    tau = string.format('%.17g', since + shift)
    deviation = string.format('%.17g', (1 - left) * off + left * tonumber(deviation))
    count = string.format('%d', tonumber(count) + n)
  end
  redis.call('HSET', KEYS[2], field, tau)
  redis.call('HSET', KEYS[3], field, count)
  if has_deviation then
    redis.call('HSET', KEYS[4], field, deviation)
  end
end
