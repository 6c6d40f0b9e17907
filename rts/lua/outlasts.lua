-- For keys that are set to expire. A library, prepended to other scripts.

-- Returns whether a key will last longer than the *ms* that it was set for: then the server's
-- clock was set back since, and whoever has set the key may be gone.
local function outlasts(key, ms)
  return redis.call('PTTL', key) > ms
end
