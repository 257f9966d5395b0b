-- KEYS: the list. ARGV: how long entries are kept in ms, then user ids. Returns the last position. A clock that goes back, as
-- after a failover, does not hide an entry from those who have read further.
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local position = math.max(now, (tonumber(last[2]) or 0) + 1)
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], position, ARGV[i])
  position = position + 1
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
return position - 1
