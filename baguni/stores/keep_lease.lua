-- KEYS: the lease. ARGV: the holder's value, lease in ms, 0 to give it up. Returns whether it was still held.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
