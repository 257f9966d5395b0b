-- KEYS: the lease, the last number. ARGV: who asks, lease in ms. Returns the number, or who holds it. The number is at least the
-- time, so that it grows even after Redis has lost the last one.
local holder = redis.call('GET', KEYS[1])
if holder then return holder end
local now = redis.call('TIME')
local number = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('SET', KEYS[2], string.format('%.0f', number))
redis.call('SET', KEYS[1], string.format('%.0f', number) .. ' ' .. ARGV[1], 'PX', ARGV[2])
return number
