-- KEYS: the register. ARGV: how long entries are valid in s, how many entries are removed, those, then those that are served.
local now, num_removed = tonumber(redis.call('TIME')[1]), tonumber(ARGV[2])
for i = 3, 2 + num_removed do redis.call('ZREM', KEYS[1], ARGV[i]) end
for i = 3 + num_removed, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
