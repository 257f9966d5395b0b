-- KEYS: the list, the times of deletions. ARGV: the position that the reader knows, most entries of the reply. Returns user id,
-- position and time of each later entry, in order; the time is the position where an earlier version noted none.
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local reply = {}
for i = 1, #found, 2 do
  reply[#reply + 1] = found[i]
  reply[#reply + 1] = found[i + 1]
  reply[#reply + 1] = redis.call('HGET', KEYS[2], found[i]) or found[i + 1]
end
return reply
