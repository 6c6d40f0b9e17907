-- For keys that are set to expire after so many milliseconds.

-- Returns whether a key lasts longer than *ms*, for which it was set: the server's clock was set
-- back since, and whoever has set the key may be gone.
local function outlasts(key, ms)
  local left = redis.pcall('PTTL', key) -- which a user of an earlier version may not ask
  return type(left) == 'number' and left > ms
end
