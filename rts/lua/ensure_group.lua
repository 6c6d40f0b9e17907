-- Creates a consumer group of a stream unless it is there; goes before scripts that read one.
--
-- *start*: where a new group begins, '0' or '$'. Closes the race between a wiped Redis and the
-- read that follows.

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

