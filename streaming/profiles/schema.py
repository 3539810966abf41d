"""The shapes that last: the delta (on Kafka) and the profile (in Redis), both msgpack, both versioned.

Delta, a map; what one batch adds to one customer from one partition. Its bytes go to Kafka and,
unchanged, to the merge script: a store can be rebuilt from the topic alone.

    v    int    DELTA_VERSION
    id   str    customer_id
    src  str    "chat" | "order": scores of different sources are kept apart, so that how two topics
                interleave can't change a profile
    f    str    the fence this delta moves, "topic/partition/epoch"
    mv   str    model version that gave the evidence
    at   int    processing time, epoch ms
    l    list   labels used below: [facet, label, half_life_ms]
    e    list   entries in order of offset, each
                [offset, event_id, ring_id, ts, evidence, order]
                ring_id   52-bit hash of the event id (Lua's exact integers)
                evidence  flat list: index into l, probability, index, probability, ...
                order     absent for chats, else
                          [status, currency, value, items, lines], value in 1/MONEY units,
                          lines: [[sku, quantity, description], ...]

Profile, a map; the merge script (`merge.lua`) writes it, `view` reads it.

    v    int    PROFILE_VERSION
    id   str    customer_id
    u    int    processing time of the last merge, epoch ms (the one field that replay may change)
    f    map    fence: "topic/partition/epoch" -> highest applied offset
    s    map    source -> {
                  n   events applied
                  t   newest event time
                  r   ring: ring_ids of the last RING applied events, oldest first
                  l   facet -> [half_life_ms, {label -> [w, t, n, model, ids]}]
                      w    forward-decayed sum of evidence as of event time t
                      n    pieces of evidence
                      ids  the newest PROVENANCE event ids, in order of arrival
                }
    o    map    order aggregates, absent before the first order:
                  n, c, r      orders placed, cancelled, returned
                  a, z         event time of the first and the last order placed
                  q            items bought
                  k            lines bought
                  m            currency -> [spent, cancelled, returned] in 1/MONEY units
                  p            sku -> [orders, quantity, newest ts, description], at most PRODUCTS (Space-Saving,
                               Metwally et al. 2005: a newcomer takes the place and count of the smallest)
    c, i        kept for consent and identity links. The script carries keys that it doesn't know.

Lua's msgpack has no empty map (absent instead), no bin, and writes floats with integral values as ints.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack

DELTA_VERSION = 1
PROFILE_VERSION = 1

# A producer that repeats itself does so within its retry window; 32 events a customer is far beyond it.
RING = 32
# Enough to answer "why" with something to look at; the topics hold the rest.
PROVENANCE = 3
# A profile lists what a person keeps buying; 16 covers it and stays below 1 KB.
PRODUCTS = 16
DESCRIPTION_CHARS = 40
# Strongest labels kept in one facet of one source; packs have 10 to 40, of which a customer shows a few.
LABELS_PER_FACET = 32
# The cap on a profile. What goes first: provenance of all but the 8 strongest labels of each facet,
# then the weaker half of the labels, then the smaller half of the products. Fences never go.
MAX_PROFILE_BYTES = 16_384


def ring_id(event_id: str) -> int:
    """52 bits of an event id's BLAKE2b: exact in a double; two of 33 collide once in 10^13 customers."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest()) >> 12


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False)


def canonical(profile: bytes) -> bytes:
    """The profile's bytes with keys sorted and the processing time left out.

    Lua writes maps in the order of its hash table, which says nothing about a customer; two
    profiles are the same if these bytes are.
    """

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value)}
        if isinstance(value, list):
            return [ordered(item) for item in value]
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            return int(value)
        return value

    content = unpack(profile)
    content.pop("u", None)
    return pack(ordered(content))
