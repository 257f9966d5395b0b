-- KEYS: the list, the times of deletions. ARGV: the epoch and the position that the reader knows, most entries of the reply. The
-- epoch is the server's: another one may have given the same positions to other users, so the reader begins anew. Returns the
-- epoch, then user id, position and time of each later entry, in order; the time is the position where an earlier version noted
-- none.
local epoch = (string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '')
  .. (string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or '')
local position = ARGV[2]
if ARGV[1] ~= '' and ARGV[1] ~= epoch then position = 0 end
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. position, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local reply = {epoch}
for i = 1, #found, 2 do
  reply[#reply + 1] = found[i]
  reply[#reply + 1] = found[i + 1]
  reply[#reply + 1] = redis.call('HGET', KEYS[2], found[i]) or found[i + 1]
end
return reply
