-- Moves a claimed message that cannot be parsed to the refused ones of its queue.
-- KEYS: unacked, unacked_index, refused. ARGV: tag, message, number of refused ones to keep.
--
-- First frees memory: once a script has written, Redis lets it go on writing, even if it is
-- out of memory.
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[2])
redis.call('LTRIM', KEYS[3], 0, ARGV[3] - 1)
