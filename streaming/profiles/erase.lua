-- The two steps of an erasure that touch a profile, each atomic.
-- KEYS: the profile, the tombstone. ARGV: the step, the event time up to which all is erased.
-- 'mark' sets the tombstone (the latest wins) and returns the profile that is to go, if there is one; from here on
-- merges and registers take no notice of it. 'delete' deletes it, but not one that began after the tombstone.

local erased_at = tonumber(ARGV[2])
if ARGV[1] == 'mark' and erased_at > tonumber(redis.call('GET', KEYS[2]) or -1) then
  redis.call('SET', KEYS[2], string.format('%.0f', erased_at))
end
local stored = redis.call('GET', KEYS[1])
if not stored then return false end
local readable, profile = pcall(cmsgpack.unpack, stored)
if readable and (profile.x or -1) >= erased_at then return false end
if ARGV[1] == 'delete' then redis.call('DEL', KEYS[1]) end
return stored
