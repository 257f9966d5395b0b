-- KEYS: claims. ARGV: item_id, the content codes, the number of suffixes, then suffixes that are taken.
-- An item that asks again is given what it has.
local taken = {}
for i = 4, #ARGV do taken[tonumber(ARGV[i])] = true end
for suffix = 0, tonumber(ARGV[3]) - 1 do
  if not taken[suffix] then
    local field = ARGV[2] .. ',' .. suffix
    if redis.call('HSETNX', KEYS[1], field, ARGV[1]) == 1 or redis.call('HGET', KEYS[1], field) == ARGV[1] then
      return suffix
    end
  end
end
return -1
