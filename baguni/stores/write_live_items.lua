-- KEYS: items, changes, sequence, times. ARGV: item_id, time of its event in ms and payload of each item. An item of which Redis
-- has a later event is left out. Returns the ids of those.
local older = {}
for i = 1, #ARGV, 3 do
  if tonumber(redis.call('HGET', KEYS[4], ARGV[i]) or '-1') > tonumber(ARGV[i + 1]) then
    older[#older + 1] = ARGV[i]
  else
    local sequence = redis.call('INCR', KEYS[3])
    redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
    redis.call('ZADD', KEYS[2], sequence, ARGV[i])
  end
end
return older
