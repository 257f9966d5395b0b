-- KEYS: the register. Returns the entries that are valid.
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. redis.call('TIME')[1], '+inf')
