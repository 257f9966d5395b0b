-- Merge changes into histories; `baguni.packed_history` has the format, `baguni.history.build` says what the result must be.
--
-- KEYS   histories
-- ARGV   max events, ttl in s, the clock in s, the clock skew in ms, and the changes of each history, as `pack_changes` makes
--        them: [time, action, content, time, action, content, ...]
-- Reply  for each history: its version; a letter for each change, see `Outcome`; the bytes written, 0 if nothing changed; and 1
--        if what was stored could not be read. Such a value is set aside under KEY:damaged.
--
-- What is newer than everything stored is appended. Anything else merges two sorted lists, so the time grows with what is stored
-- and what is new, not with their product. T, A, C: time, action and content of entries, oldest first.

local ORDERED, CANCELLED, DELETED = 1, 4, 5
local DAMAGED_TTL = 30 * 86400 -- s
local HEAD, HEAD_BYTES = '>I4I4I4I8I8', 28
local cap, ttl, clock, skew = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local most = 2 * cap + math.max(16, math.floor(cap / 8)) -- entries before a merge takes away what is too old
local crowd = cap + math.max(16, math.floor(cap / 4)) -- with more, a merge trims those of the oldest moment to exactly `cap`

local function add(content, known, from, start) -- append to `content` what `known` has not
  local added = 0
  for k = start, #from do
    local id = from[k]
    if not known[id] then
      known[id] = true
      content[#content + 1] = id
      added = added + 1
    end
  end
  return added
end

local function once(action, content) -- an order that names an item twice has it once
  if action ~= ORDERED then return content end
  local distinct = {content[1]}
  add(distinct, {}, content, 2)
  return distinct
end

local function size(action, content)
  return action == ORDERED and #content - 1 or 1
end

local function as_text(id)
  return type(id) == 'number' and string.format('%.0f', id) or id
end

local function decode(value) -- raises an error if the value is no history
  local T, A, C = {}, {}, {}
  local at, now = HEAD_BYTES, 0
  while at >= 0 and at < #value do
    local fields = {cmsgpack.unpack_limit(value, 300, at)}
    at = fields[1]
    for i = 2, #fields, 3 do
      local gap, action, content = fields[i], fields[i + 1], fields[i + 2]
      assert(type(gap) == 'number' and gap >= 0 and type(action) == 'number' and action >= 1 and action <= CANCELLED)
      local kind = type(content)
      assert(action == ORDERED and kind == 'table' and content[1] ~= nil or action ~= ORDERED and (kind == 'string' or kind == 'number'))
      now = now + gap
      local n = #T + 1
      T[n], A[n], C[n] = now, action, content
    end
  end
  return T, A, C
end

local function in_time_order(changes) -- positions of the changes, oldest first
  local positions, is_sorted = {}, true
  for i = 1, #changes, 3 do
    positions[#positions + 1] = i
    is_sorted = is_sorted and (i == 1 or changes[i - 3] <= changes[i])
  end
  if not is_sorted then
    table.sort(positions, function(one, other)
      if changes[one] ~= changes[other] then return changes[one] < changes[other] end
      return one < other
    end)
  end
  return positions
end

-- The newest `need` lines of entries at one time, by action, order and item: of cancellations, or of everything else.
local function newest_lines(A, C, first, last, need, are_cancelled)
  local keys, lines = {}, {} -- as text, which Lua sorts quickly
  local function note(action, order, item)
    local key = action .. (order and as_text(order) or '') .. '\0' .. as_text(item)
    keys[#keys + 1], lines[key] = key, {action, order, item}
  end
  for k = first, last do
    if (A[k] == CANCELLED) == are_cancelled then
      if A[k] == ORDERED then
        for j = 2, #C[k] do note(ORDERED, C[k][1], C[k][j]) end
      else
        note(A[k], nil, C[k])
      end
    end
  end
  table.sort(keys)
  local actions, contents, order = {}, {}, nil
  for k = math.max(#keys - need + 1, 1), #keys do
    local action, order_id, item = unpack(lines[keys[k]], 1, 3)
    if action ~= ORDERED then
      actions[#actions + 1], contents[#contents + 1] = action, item
    elseif order ~= nil and order[1] == order_id then
      order[#order + 1] = item
    else
      order = {order_id, item}
      actions[#actions + 1], contents[#contents + 1] = ORDERED, order
    end
  end
  return actions, contents
end

local function change(key, changes)
  local value, is_damaged = redis.pcall('GET', key), 0
  local function set_aside()
    redis.call('RENAME', key, key .. ':damaged')
    redis.call('EXPIRE', key .. ':damaged', DAMAGED_TTL)
    value, is_damaged = false, 1
  end
  if type(value) == 'table' or value and #value < HEAD_BYTES then set_aside() end -- another type, or cut short

  local version, count, newest, deleted = 0, 0, 0, 0
  if value then
    local _
    version, count, _, newest, deleted = struct.unpack(HEAD, value)
  end

  local function store(body)
    version = math.max(version + 1, clock)
    local head = struct.pack(HEAD, version, count, cap, newest, deleted)
    redis.call('SET', key, head .. body, 'EX', ttl)
    return #head + #body
  end

  local function append()
    if #changes == 0 or count > most then return nil end
    local latest, total, pieces = math.max(newest, deleted), count, {}
    for i = 1, #changes, 3 do
      local time, action, content = changes[i], changes[i + 1], once(changes[i + 1], changes[i + 2])
      if time <= latest or action == DELETED then return nil end
      pieces[#pieces + 1] = cmsgpack.pack(time - (i == 1 and newest or latest), action, content)
      latest, total = time, total + size(action, content)
    end
    if total > most then return nil end
    newest, count = latest, total
    return table.concat(pieces)
  end

  local appended = append()
  if appended then
    local bytes = store((value and string.sub(value, HEAD_BYTES + 1) or '') .. appended)
    return {version, string.rep('n', #changes / 3), bytes, is_damaged}
  end

  local oldT, oldA, oldC = {}, {}, {}
  if value then
    local is_sound, T, A, C = pcall(decode, value)
    if is_sound then
      oldT, oldA, oldC = T, A, C
    else
      set_aside()
      version, count, newest = 0, 0, 0
      if deleted > clock * 1000 + skew then deleted = 0 end -- what is to stay forgotten stands in the head
    end
  end

  local letters, is_changed, latest_change = {}, false, -1
  for i = 1, #changes, 3 do
    letters[(i + 2) / 3] = 'd'
    if changes[i + 1] == DELETED then redis.call('DEL', key .. ':damaged') end
    if changes[i + 1] == DELETED and changes[i] > deleted then
      deleted, is_changed = changes[i], true
      letters[(i + 2) / 3] = 'n'
    end
  end

  local T, A, C, at = {}, {}, {}, 1
  local function keep(time, action, content)
    local n = #T + 1
    T[n], A[n], C[n] = time, action, content
    return n
  end
  local function copy_until(time) -- what is stored of before this time
    while oldT[at] and oldT[at] < time do
      if oldT[at] > deleted then keep(oldT[at], oldA[at], oldC[at]) end
      at = at + 1
    end
  end
  local seen, orders, items, moment -- entries of this moment: by action and content, and where each order is
  local function note(place)
    local action, content = A[place], C[place]
    if action == ORDERED then
      orders[content[1]] = place
    else
      seen[action] = seen[action] or {}
      seen[action][content] = true
    end
  end
  local function insert(time, action, content)
    if time <= deleted then return 'f' end
    if time ~= moment then
      copy_until(time)
      seen, orders, items, moment = {}, {}, {}, time
      while oldT[at] == time do
        note(keep(oldT[at], oldA[at], oldC[at]))
        at = at + 1
      end
    end
    local place = action == ORDERED and orders[content[1]]
    if place then
      if not items[place] then
        items[place] = {}
        for k = 2, #C[place] do items[place][C[place][k]] = true end
      end
      if add(C[place], items[place], content, 2) == 0 then return 'd' end
      latest_change = math.max(latest_change, time)
    elseif action ~= ORDERED and seen[action] and seen[action][content] then
      return 'd'
    else
      note(keep(time, action, once(action, content)))
      latest_change = math.max(latest_change, action == CANCELLED and time + skew or time)
    end
    return oldT[at] and 'l' or 'n'
  end
  for _, i in ipairs(in_time_order(changes)) do
    if changes[i + 1] ~= DELETED then letters[(i + 2) / 3] = insert(changes[i], changes[i + 1], changes[i + 2]) end
  end
  local so_far = 0 -- what came after something later of the same call is late, too
  for i = 1, #changes, 3 do
    if letters[(i + 2) / 3] == 'n' and changes[i] < so_far then letters[(i + 2) / 3] = 'l' end
    so_far = math.max(so_far, changes[i])
  end
  copy_until(math.huge)

  -- What is older than the cap-th newest event cannot be among the newest any more; the same for cancellations.
  local function tail(are_cancelled) -- the time of the cap-th newest, its first and last entry, and how many are newer
    local found, oldest, first, last, newer = 0, 0, nil, nil, 0
    for k = #T, 1, -1 do
      if (A[k] == CANCELLED) == are_cancelled then
        if found >= cap and T[k] ~= oldest then break end
        if T[k] ~= oldest then oldest, last, newer = T[k], k, found end
        found, first = found + size(A[k], C[k]), k
      end
    end
    return {full = found >= cap, oldest = found >= cap and oldest or 0, first = first, last = last, newer = newer, count = found}
  end
  local events, cancelled = tail(false), tail(true)
  local bytes = 0
  if is_changed or is_damaged == 1 or latest_change >= events.oldest then
    local pieces, now = {}, 0
    count, newest = 0, 0
    local function write(time, action, content)
      pieces[#pieces + 1] = cmsgpack.pack(time - now, action, content)
      now, newest = time, time
      count = count + size(action, content)
    end
    local function write_newest(of, are_cancelled) -- too many at one moment to keep all of them
      local actions, contents = newest_lines(A, C, of.first, of.last, cap - of.newer, are_cancelled)
      for j = 1, #actions do write(of.oldest, actions[j], contents[j]) end
    end
    for k = 1, #T do
      local is_cancelled = A[k] == CANCELLED
      local of = is_cancelled and cancelled or events
      if of.count > crowd and T[k] == of.oldest then
        if k == of.first then write_newest(of, is_cancelled) end
      elseif T[k] >= of.oldest and (not is_cancelled or T[k] + skew >= events.oldest) then
        write(T[k], A[k], C[k])
      end
    end
    bytes = store(table.concat(pieces))
  end
  return {version, table.concat(letters), bytes, is_damaged}
end

local all, replies = cmsgpack.unpack(ARGV[5]), {}
for k = 1, #KEYS do replies[k] = change(KEYS[k], all[k]) end
return replies
