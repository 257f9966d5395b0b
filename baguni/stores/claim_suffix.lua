-- KEYS: claims. ARGV: item_id, the content codes, the number of suffixes, a suffix to try first or -1, then suffixes that are
-- taken. An item that asks again is given what it has.
local taken = {}
for i = 5, #ARGV do taken[tonumber(ARGV[i])] = true end
for place = -1, tonumber(ARGV[3]) - 1 do
  local suffix = place < 0 and tonumber(ARGV[4]) or place
  if suffix >= 0 and not taken[suffix] then
    local field = ARGV[2] .. ',' .. suffix
    if redis.call('HSETNX', KEYS[1], field, ARGV[1]) == 1 or redis.call('HGET', KEYS[1], field) == ARGV[1] then
      return suffix
    end
  end
end
return -1
