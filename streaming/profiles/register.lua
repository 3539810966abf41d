-- Write or drop one register of a profile, atomically. Shapes: schema.py, in front of which `store.py` puts its numbers.
-- KEYS: the profile, the tombstone of an erasure.
-- ARGV: customer_id, map ('c' or 'i'), name, value ('1', '0', or '' to drop), ts, tie.
-- Returns what became of it: 'written', 'older' (a later writer was here), 'erased' (an erasure covers it),
-- 'full' (MAX_LINKS), or 'version' (the profile is of a newer schema).

local both = redis.call('MGET', KEYS[1], KEYS[2])
local stored, erased_at = both[1], tonumber(both[2] or -1)
local map, name, value, ts, tie = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local dropping = value == ''

if not dropping and ts <= erased_at then return 'erased' end
local profile = stored and cmsgpack.unpack(stored)
if profile and profile.v ~= PROFILE_VERSION then return 'version' end
if profile and erased_at > (profile.x or -1) then profile = nil end
if not profile then
  if dropping then return 'older' end
  profile = {v = PROFILE_VERSION, id = ARGV[1]}
  if erased_at >= 0 then profile.x = erased_at end
end

local registers = profile[map] or {}
local found = registers[name]
if dropping then
  if not found or found[2] > ts then return 'older' end
  registers[name] = nil
else
  if found and (found[2] > ts or (found[2] == ts and found[3] >= tie)) then return 'older' end
  if not found and map == 'i' then
    local known = 0
    for _ in pairs(registers) do known = known + 1 end
    if known >= MAX_LINKS then return 'full' end
  end
  registers[name] = {value == '1', ts, tie}
end
profile[map] = next(registers) and registers -- Lua's msgpack knows no empty map
if profile.s or profile.c or profile.i then
  redis.call('SET', KEYS[1], cmsgpack.pack(profile))
else
  redis.call('DEL', KEYS[1])
end
return 'written'
