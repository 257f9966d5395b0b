-- KEYS: the counts, the snapshot. ARGV: ttl in s, 1 to keep a snapshot. An empty name keeps a snapshot of nothing.
local from = KEYS[2]
if redis.call('EXISTS', KEYS[2]) == 0 then
  if ARGV[2] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('ZUNIONSTORE', KEYS[2], 1, KEYS[1])
    redis.call('ZADD', KEYS[2], 0, '')
    redis.call('EXPIRE', KEYS[2], ARGV[1])
  else
    from = KEYS[1]
  end
end
return redis.call('ZREVRANGE', from, 0, -1, 'WITHSCORES')
