-- KEYS: positions, what any group of the family has passed. ARGV: the run id of the Redis that was written to, or nothing; then
-- partition, its topic's id, where the batch began, where it ended, for each. Returns the partitions of which something before the
-- batch is missing; these stay as they are. They are all of them, if this is another Redis than the one that was written to. A
-- position never goes back here: that would be a member that was away. What was passed never goes back at all, unless the topic
-- was made anew; of a topic without an id nobody could tell that, so nothing of it counts as passed.
local missing = {}
local is_another = ARGV[1] ~= '' and string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') ~= ARGV[1]

local function read(key, partition, topic_id)
  local at, id = string.match(redis.call('HGET', key, partition) or '', '^(%d+) (.*)$')
  return id == topic_id and tonumber(at) or -1
end

local function write(key, partition, at, topic_id)
  redis.call('HSET', key, partition, string.format('%.0f', at) .. ' ' .. topic_id)
end

for i = 2, #ARGV, 4 do
  local partition, topic_id, from, to = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local stored = read(KEYS[1], partition, topic_id)
  if is_another or stored < from then
    missing[#missing + 1] = partition
  else
    local reached = math.max(stored, to)
    if stored < reached then write(KEYS[1], partition, reached, topic_id) end
    if topic_id ~= '' and read(KEYS[2], partition, topic_id) < reached then
      write(KEYS[2], partition, reached, topic_id)
    end
  end
end
return missing
