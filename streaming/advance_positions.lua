-- KEYS: positions. ARGV: the run id of the Redis that was written to, or nothing; then partition, its topic's id, where the
-- batch began, where it ended, for each. Returns the partitions of which something before the batch is missing; these stay as
-- they are. They are all of them, if this is another Redis than the one that was written to. A position never goes back here:
-- that would be a member that was away.
local missing = {}
local is_another = ARGV[1] ~= '' and string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') ~= ARGV[1]
for i = 2, #ARGV, 4 do
  local at, id = string.match(redis.call('HGET', KEYS[1], ARGV[i]) or '', '^(%d+) (.*)$')
  local stored = id == ARGV[i + 1] and tonumber(at) or -1
  if is_another or stored < tonumber(ARGV[i + 2]) then
    missing[#missing + 1] = ARGV[i]
  elseif stored < tonumber(ARGV[i + 3]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 3] .. ' ' .. id)
  end
end
return missing
