-- Moves a message from the deadline order to a plain list, unless it has been claimed.
-- KEYS: sorted set, list. ARGV: member, payload.
-- Returns 1 if it was moved, else 0.
local waits = redis.call('ZREM', KEYS[1], ARGV[1])
if waits == 1 then redis.call('LPUSH', KEYS[2], ARGV[2]) end
return waits
