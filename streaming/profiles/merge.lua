-- Merge deltas into profiles, atomically. Shapes: schema.py.
-- KEYS[2i-1] a profile, KEYS[2i] the tombstone of an erasure (or nothing there), ARGV[1] a msgpack list of the
-- deltas (one argument: each costs the client half a microsecond): each of a customer of its own, or of several
-- in a row.
-- `store.py` puts the constants (RING, ...), ANALYTICS and RETENTION in front.
--
-- Returns for each, as msgpack, [applied, created, bytes, scores, expired, erased, refused, why]: events applied,
-- 1 when the profile is new, its size, and for the delta's labels a flat [index, A, ...] with A = log2 of the
-- undecayed sum in half-lives since the epoch. A is what audience sets are ordered by. It is returned for a repeat
-- too: the first time may have ended between the merge and the audience's update. `expired`: flat [facet, label,
-- ...] that the profile no longer shows. `erased`: how many events an erasure covers. `refused`: offsets of single
-- events that can't be merged, and why; told again for a repeat, whose first time may have ended before anyone knew.
-- A delta that can't be merged as a whole gives [-1, why].

local LN2 = math.log(2)

local delta, profile, source -- of the customer at hand
local products -- unpacked when an order comes

-- log2 of a sum, in half-lives since the epoch: comparable between any two times
local function absolute(w, t, half_life)
  return math.log(w) / LN2 + t / half_life
end

-- where a label stands in its facet's list: its name, and after it its sum
local function find(facet, label)
  for at = 2, #facet, 2 do
    if facet[at] == label then return at end
  end
end

-- a sum is a msgpack list of its own: of a profile's labels, only those that a delta names are unpacked.
-- 0x95 heads a list of five; packing without a table in between costs half.
local function pack_sum(w, t, n, model, ids)
  return '\149' .. cmsgpack.pack(w, t, n, model, ids)
end

local function unpack_sum(sum)
  return cmsgpack.unpack(string.sub(sum, 2))
end

-- places of a facet's labels, strongest first; ties by name, so that what goes never depends on chance
local function ranked(facet)
  local places, strength = {}, {}
  for at = 2, #facet, 2 do
    places[#places + 1] = at
    local w, t = unpack_sum(facet[at + 1])
    strength[at] = absolute(w, t, facet[1])
  end
  table.sort(places, function(a, b)
    if strength[a] ~= strength[b] then return strength[a] > strength[b] end
    return facet[a] < facet[b]
  end)
  return places
end

local function remove(list, at, fields)
  for _ = 1, fields do table.remove(list, at) end
end

-- the last PROVENANCE of `ids` and one more; an id holds no control character, so newlines part them
local function newest_ids(ids, event_id)
  if ids == '' then return event_id end
  ids = ids .. '\n' .. event_id
  local breaks, at = 0, 0
  repeat
    at = string.find(ids, '\n', at + 1, true)
    breaks = breaks + (at and 1 or 0)
  until not at
  if breaks < PROVENANCE then return ids end
  return string.sub(ids, string.find(ids, '\n', 1, true) + 1)
end

local function in_ring(ring, id)
  local at = string.find(ring, id, 1, true)
  while at and (at - 1) % RING_ID_CHARS ~= 0 do at = string.find(ring, id, at + 1, true) end
  return at
end

local function add_evidence(label, p, ts, event_id)
  source.l = source.l or {}
  local half_life = label[3]
  local facet = source.l[label[1]]
  if not facet then
    facet = {half_life}
    source.l[label[1]] = facet
  end
  facet[1] = half_life -- a pack that changes it decides from here on
  local at = find(facet, label[2])
  if not at then
    facet[#facet + 1] = label[2]
    facet[#facet + 1] = pack_sum(p, ts, 1, delta.mv, event_id)
    if #facet > 1 + LABELS_PER_FACET * 2 then
      local places = ranked(facet)
      remove(facet, places[#places], 2)
    end
    return
  end
  local w, t, n, _, ids = unpack_sum(facet[at + 1])
  if ts > t then
    w = w * 2 ^ ((t - ts) / half_life) + p
    t = ts
  else
    w = w + p * 2 ^ ((ts - t) / half_life)
  end
  facet[at + 1] = pack_sum(w, t, n + 1, delta.mv, newest_ids(ids, event_id))
end

-- the place of the product that goes first: fewest orders, the earliest place among equals
local function least_product()
  local least = 1
  for at = 1 + PRODUCT_FIELDS, #products, PRODUCT_FIELDS do
    if products[at + 1] < products[least + 1] then least = at end
  end
  return least
end

-- the rest of a product is packed by itself, for the same reason; 0x93 heads a list of three
local function add_product(line, ts)
  for at = 1, #products, PRODUCT_FIELDS do
    if products[at] == line[1] then
      local quantity, newest, description = cmsgpack.unpack(string.sub(products[at + 2], 2))
      products[at + 1] = products[at + 1] + 1
      products[at + 2] = '\147' .. cmsgpack.pack(quantity + line[2], math.max(newest, ts), description)
      return
    end
  end
  local at, inherited = #products + 1, 0
  if #products >= PRODUCTS * PRODUCT_FIELDS then
    at = least_product()
    inherited = products[at + 1]
  end
  products[at], products[at + 1] = line[1], inherited + 1
  products[at + 2] = '\147' .. cmsgpack.pack(line[2], ts, line[3])
end

local function one_currency_too_many(currency)
  local money = profile.o and profile.o.m
  if not money or money[currency] then return false end
  local known = 0
  for _ in pairs(money) do known = known + 1 end
  return known >= MAX_CURRENCIES
end

local function add_order(order, ts)
  local status, currency, value = order[1], order[2], order[3]
  local all = profile.o or {n = 0, c = 0, r = 0, q = 0, k = 0, m = {}}
  profile.o = all
  local money = all.m[currency] or {0, 0, 0}
  all.m[currency] = money
  if status == 'placed' then
    all.n = all.n + 1
    if not all.a or ts < all.a then all.a = ts end
    if not all.z or ts > all.z then all.z = ts end
    all.q = all.q + order[4]
    all.k = all.k + order[5]
    money[1] = money[1] + value
    products = products or (all.p and cmsgpack.unpack(all.p)) or {}
    for _, line in ipairs(order[6]) do add_product(line, ts) end
  elseif status == 'cancelled' then
    all.c = all.c + 1
    money[2] = money[2] + value
  else
    all.r = all.r + 1
    money[3] = money[3] + value
  end
end

local function packed_profile()
  if products and #products > 0 then profile.o.p = cmsgpack.pack(products) end
  return cmsgpack.pack(profile)
end

-- keep the stronger half of every facet's labels
local function halve_labels()
  local dropped = false
  for _, it in pairs(profile.s) do
    for _, facet in pairs(it.l or {}) do
      local places = ranked(facet)
      local gone = {}
      for rank = math.ceil(#places / 2) + 1, #places do gone[#gone + 1] = places[rank] end
      table.sort(gone, function(a, b) return a > b end) -- from the back: the places before stay true
      for _, at in ipairs(gone) do
        remove(facet, at, 2)
        dropped = true
      end
    end
  end
  return dropped
end

local function halve_products()
  products = products or (profile.o and profile.o.p and cmsgpack.unpack(profile.o.p)) or {}
  local most = math.ceil(#products / PRODUCT_FIELDS / 2) * PRODUCT_FIELDS
  if #products <= PRODUCT_FIELDS then return false end
  while #products > most do remove(products, least_product(), PRODUCT_FIELDS) end
  return true
end

-- what goes first is documented in schema.py (MAX_PROFILE_BYTES)
local function fit()
  for _, it in pairs(profile.s) do
    for _, facet in pairs(it.l or {}) do
      for rank, at in ipairs(ranked(facet)) do
        if rank > 8 then
          local w, t, n, model = unpack_sum(facet[at + 1])
          facet[at + 1] = pack_sum(w, t, n, model, '')
        end
      end
    end
  end
  local packed = packed_profile()
  while #packed > MAX_PROFILE_BYTES do
    local dropped = halve_labels()
    packed = packed_profile()
    if #packed > MAX_PROFILE_BYTES then
      dropped = halve_products() or dropped
      packed = packed_profile()
    end
    if not dropped then break end
  end
  return packed
end

local function audience_scores()
  local scores = {}
  for index, label in ipairs(delta.l) do
    -- one sum over the sources, as of the newest of their times, in the half-life that the delta names
    local newest, total = nil, 0
    for _, it in pairs(profile.s) do
      local facet = it.l and it.l[label[1]]
      local at = facet and find(facet, label[2])
      if at then
        local w, t = unpack_sum(facet[at + 1])
        if not newest then
          newest, total = t, w
        elseif t > newest then
          newest, total = t, total * 2 ^ ((newest - t) / label[3]) + w
        else
          total = total + w * 2 ^ ((t - newest) / label[3])
        end
      end
    end
    if total > 0 then
      scores[#scores + 1] = index - 1
      scores[#scores + 1] = absolute(total, newest, label[3])
    end
  end
  return scores
end

local function refuse(why)
  return cmsgpack.pack({-1, why})
end

-- what a customer says of analytics decides over everything that is told of them but the mere count of events
local function may_analyse()
  local said = profile.c and profile.c.analytics
  if said then return said[1] end
  return ANALYTICS
end

local function shown(facet, label)
  for _, it in pairs(profile.s) do
    local flat = it.l and it.l[facet]
    if flat and find(flat, label) then return true end
  end
  return false
end

-- drop labels whose newest evidence is older than their facet may be kept; what no source shows any more is returned
local function expire(now)
  local gone = {}
  for name, keep in pairs(RETENTION) do
    for _, it in pairs(profile.s) do
      local facet = it.l and it.l[name]
      if facet then
        for at = #facet - 1, 2, -2 do
          local _, t = unpack_sum(facet[at + 1])
          if t < now - keep then
            gone[facet[at]] = name
            remove(facet, at, 2)
          end
        end
        if #facet == 1 then it.l[name] = nil end
        if not next(it.l) then it.l = nil end
      end
    end
  end
  local expired = {}
  for label, name in pairs(gone) do
    if not shown(name, label) then
      expired[#expired + 1] = name
      expired[#expired + 1] = label
    end
  end
  return expired
end

-- one read and one write for all: a call of Redis costs a fiftieth of a merge
local values = redis.call('MGET', unpack(KEYS))
local written = {} -- profile key -> bytes

local function merge(key, stored, erased_at)
  if delta.v ~= DELTA_VERSION then
    return refuse('delta has version ' .. tostring(delta.v) .. ', expected ' .. DELTA_VERSION)
  end
  if stored then
    local readable, content = pcall(cmsgpack.unpack, stored)
    if not readable then return refuse('the stored profile is not msgpack') end
    profile = content
    if profile.v ~= PROFILE_VERSION then
      return refuse('profile has schema version ' .. tostring(profile.v) .. ', this worker writes '
        .. PROFILE_VERSION .. ': upgrade the worker')
    end
    if erased_at > (profile.x or -1) then stored = nil end -- what is about to be deleted
  end
  if not stored then
    profile = {v = PROFILE_VERSION, id = delta.id}
    if erased_at >= 0 then profile.x = erased_at end
  end
  profile.f, profile.s = profile.f or {}, profile.s or {} -- one that holds only links or consent has none
  source = profile.s[delta.src] or {n = 0, r = ''}
  products = nil

  local fence = profile.f[delta.f] or -1
  local highest = fence
  local applied, erased = 0, 0
  local refused, expired -- rare: made when needed
  local analysed = may_analyse()

  for _, entry in ipairs(delta.e) do
    local offset, event_id, ring_id, ts, evidence, order = entry[1], entry[2], entry[3], entry[4], entry[5], entry[6]
    if ts <= erased_at then
      erased = erased + 1 -- and as if it had never been: it moves no fence and makes no profile
    elseif order and analysed and one_currency_too_many(order[2]) then
      refused = refused or {}
      refused[#refused + 1] = offset
      if offset > highest then highest = offset end
    elseif offset > fence then -- the fence as it was: events of one envelope share an offset
      if offset > highest then highest = offset end
      if not in_ring(source.r, ring_id) then
        source.r = string.sub(source.r .. ring_id, -RING * RING_ID_CHARS)
        source.n = source.n + 1
        if not source.t or ts > source.t then source.t = ts end
        if analysed then
          for i = 1, #evidence, 2 do
            add_evidence(delta.l[evidence[i] + 1], evidence[i + 1], ts, event_id)
          end
          if order then add_order(order, ts) end
        end
        applied = applied + 1
      end
    end
  end

  local size, created = stored and #stored or 0, 0
  if highest > fence then
    profile.f[delta.f] = highest
    if applied > 0 then
      profile.s[delta.src] = source
      profile.u = delta.at
    end
    profile.e = next(RETENTION) and RETENTION -- for readers, who know no settings
    if profile.e then expired = expire(delta.at) end
    local packed = packed_profile()
    if #packed > MAX_PROFILE_BYTES then packed = fit() end
    written[key] = packed
    size = #packed
    if not stored then created = 1 end
  end

  local scores = audience_scores()
  if not expired and not refused and erased == 0 then
    return cmsgpack.pack({applied, created, size, scores})
  end
  return cmsgpack.pack({applied, created, size, scores, expired or {}, erased, refused or {},
    'orders of one customer in more than ' .. MAX_CURRENCIES .. ' currencies'})
end

local results = {}
for i, it in ipairs(cmsgpack.unpack(ARGV[1])) do
  delta = it
  local key = KEYS[2 * i - 1]
  local erased_at = values[2 * i]
  results[i] = merge(key, written[key] or values[2 * i - 1], erased_at and tonumber(erased_at) or -1)
end
if next(written) then
  local writes = {}
  for key, packed in pairs(written) do
    writes[#writes + 1] = key
    writes[#writes + 1] = packed
  end
  redis.call('MSET', unpack(writes))
end
return results
