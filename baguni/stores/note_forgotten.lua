-- KEYS: the list, the times of deletions. ARGV: how long entries are kept in ms, then user id and time of the deletion in ms of
-- each. A user whose noted deletion is as late gets no new position: the same event is read again after a rewind. An entry of an
-- earlier version has no time; everything before its position was removed. A clock that goes back, as after a failover, does not
-- hide an entry from those who have read further.
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local position = math.max(now, (tonumber(last[2]) or 0) + 1)
for i = 2, #ARGV, 2 do
  local noted = redis.call('ZSCORE', KEYS[1], ARGV[i])
  noted = noted and (redis.call('HGET', KEYS[2], ARGV[i]) or noted)
  if not noted or tonumber(noted) < tonumber(ARGV[i + 1]) then
    redis.call('ZADD', KEYS[1], position, ARGV[i])
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    position = position + 1
  end
end
for _, user_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])) do
  redis.call('HDEL', KEYS[2], user_id)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
