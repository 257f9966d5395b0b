-- KEYS: items, changes, sequence. ARGV: the last sequence that the reader knows, most items of the reply. If Redis has only
-- earlier sequences, it lost some, and the reader begins anew. Returns sequence, payload, sequence, payload, …
if tonumber(redis.call('GET', KEYS[3]) or '0') < tonumber(ARGV[1]) then ARGV[1] = 0 end
local changed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local reply = {}
for i = 1, #changed, 2 do
  reply[i] = changed[i + 1]
  reply[i + 1] = redis.call('HGET', KEYS[1], changed[i])
end
return reply
