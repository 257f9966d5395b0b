-- KEYS: items, changes, sequence. ARGV: item_id and payload of each item.
for i = 1, #ARGV, 2 do
  local sequence = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], sequence, ARGV[i])
end
