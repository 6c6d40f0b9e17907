-- Creates consumer groups of streams and deletes their idle consumers. A library, prepended
-- to other scripts.

-- Creates a group unless it is there. *start*: where a new one begins, '0' or '$'. Closes the
-- race between a wiped Redis and the read that follows.
local function ensure_group(stream, group, start)
  if redis.call('EXISTS', stream) == 1 then
    for _, other in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      if other[2] == group then
        return
      end
    end
  end
  redis.call('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM')
end

-- Deletes the consumers but *me* that have asked for nothing for more than *most_ms*, unless
-- they have pending entries. Closes the race with the delivery of an entry, which would be lost.
local function delete_idle(stream, group, me, most_ms)
  -- pcall: after a wipe there may be no such group.
  for _, consumer in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, group)) do
    local is = {}
    for i = 1, #consumer, 2 do
      is[consumer[i]] = consumer[i + 1]
    end
    if is.name ~= me and is.pending == 0 and is.idle > most_ms then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, is.name)
    end
  end
end
