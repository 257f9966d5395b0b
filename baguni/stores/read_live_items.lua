-- KEYS: items, changes, sequence. ARGV: the epoch and the last sequence that the reader knows, most items of the reply. The epoch
-- is the server's: after a restart or a failover, sequences may have been given again to other items, so the reader begins
-- anew. It also does if Redis has only earlier sequences. Returns epoch, then sequence and payload of each item.
local epoch = (string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '')
  .. (string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or '')
local last = ARGV[2]
if ARGV[1] ~= epoch or tonumber(redis.call('GET', KEYS[3]) or '0') < tonumber(last) then last = 0 end
local changed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. last, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local reply = {epoch}
for i = 1, #changed, 2 do
  reply[i + 1] = changed[i + 1]
  reply[i + 2] = redis.call('HGET', KEYS[1], changed[i])
end
return reply
