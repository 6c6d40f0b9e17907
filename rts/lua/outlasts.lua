-- For keys that are set to expire. A library, prepended to other scripts.

-- Returns whether a key will last longer than the *ms* that it was set for: then the server's
-- clock was set back since, and whoever has set the key may be gone.
local function outlasts(key, ms)
  local left = redis.pcall('PTTL', key) -- which a user of an earlier version may not ask
  return type(left) == 'number' and left > ms
end
