-- KEYS: the placements that are kept because of their clicks, by weight. ARGV: the key of a placement's counts with %s for its
-- name, most items and ttl in s of each, most placements, then packed: the names that are always kept, and
-- [name, weight of its clicks, [weight, item id, ...]] of each placement. Returns the number of clicks that were left out.
--
-- A placement is kept if its weight is among the largest, so names that are made up displace one another. One whose counts are
-- there without its weight, because it was configured before, has the weight of its counts. Keys of counts are not among KEYS:
-- which of them are removed is found here.
local template, most_items, ttl, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local placements = cmsgpack.unpack(ARGV[6])

local function counts_of(name) return (string.gsub(template, '%%s', function() return name end)) end

local function stored_weight(name)
  local sum, stored = 0, redis.call('ZRANGE', counts_of(name), 0, -1, 'WITHSCORES')
  for i = 2, #stored, 2 do sum = sum + tonumber(stored[i]) end
  return string.format('%.17g', sum)
end

local is_always_kept = {}
for _, name in ipairs(cmsgpack.unpack(ARGV[5])) do
  is_always_kept[name] = true
  redis.call('ZREM', KEYS[1], name)
end
for _, placement in ipairs(placements) do
  local name, weight = placement[1], placement[2]
  if not is_always_kept[name] then
    if not redis.call('ZSCORE', KEYS[1], name) then redis.call('ZADD', KEYS[1], stored_weight(name), name) end
    redis.call('ZINCRBY', KEYS[1], weight, name)
  end
end
local surplus = redis.call('ZCARD', KEYS[1]) - most
if surplus > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, surplus - 1)) do redis.call('DEL', counts_of(name)) end
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, surplus - 1)
end
redis.call('EXPIRE', KEYS[1], ttl)

local left_out = 0
for _, placement in ipairs(placements) do
  local name, clicks = placement[1], placement[3]
  if is_always_kept[name] or redis.call('ZSCORE', KEYS[1], name) then
    local key = counts_of(name)
    for i = 1, #clicks, 2 do redis.call('ZINCRBY', key, clicks[i], clicks[i + 1]) end
    redis.call('ZREMRANGEBYRANK', key, 0, -1 - most_items)
    redis.call('EXPIRE', key, ttl)
  else
    left_out = left_out + #clicks / 2
  end
end
return left_out
