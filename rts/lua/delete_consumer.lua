-- Deletes a consumer that stops, unless it has pending entries: another one claims those and
-- deletes it later.
--
-- KEYS  1 stream
-- ARGV  1 consumer group, 2 this consumer

delete_consumers(KEYS[1], ARGV[1], function(name) return name == ARGV[2] end)
