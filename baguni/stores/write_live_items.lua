-- KEYS: items, changes, sequence, times. ARGV: item_id, the time in ms of the event that the writer knew of the item or -1, the
-- time of its own event, and the payload, of each item. An item of which Redis has a later event is left out. Returns the id and
-- the time that was there of each item of which the writer knew another one: somebody else writes it, too.
local others = {}
for i = 1, #ARGV, 4 do
  local item_id, known, time = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local there = tonumber(redis.call('HGET', KEYS[4], item_id) or '-1')
  if there ~= known then
    others[#others + 1] = item_id
    others[#others + 1] = string.format('%.0f', there)
  end
  if there <= time then
    local sequence = redis.call('INCR', KEYS[3])
    redis.call('HSET', KEYS[4], item_id, ARGV[i + 2])
    redis.call('HSET', KEYS[1], item_id, ARGV[i + 3])
    redis.call('ZADD', KEYS[2], sequence, item_id)
  end
end
return others
