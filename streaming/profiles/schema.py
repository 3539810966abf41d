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
                ring_id   hash of the event id, RING_ID_CHARS characters
                evidence  flat list: index into l, probability, index, probability, ...
                order     absent for chats, else
                          [status, currency, value, items, lines, products], value in 1/MONEY units,
                          products: [[sku, quantity, description], ...] of an order placed, each sku once,
                          the ORDER_PRODUCTS on which most was spent

Profile, a map; the merge script (`merge.lua`) writes it, `view` reads it.

    v    int    PROFILE_VERSION
    id   str    customer_id
    u    int    processing time of the last merge, epoch ms (the one field that replay may change)
    f    map    fence: "topic/partition/epoch" -> highest applied offset
    s    map    source -> {
                  n   events applied
                  t   newest event time
                  r   ring: ring_ids of the last RING applied events, oldest first, as one string
                  l   facet -> [half_life_ms, label, sum, label, sum, ...]; a sum is a msgpack list of its own:
                        w      forward-decayed sum of evidence as of event time t
                        t
                        n      pieces of evidence
                        model  version that gave the newest
                        ids    the newest PROVENANCE event ids, in order of arrival, joined by newlines
                }
    o    map    order aggregates, absent before the first order:
                  n, c, r      orders placed, cancelled, returned
                  a, z         event time of the first and the last order placed
                  q            items bought
                  k            lines bought
                  m            currency -> [spent, cancelled, returned] in 1/MONEY units
                  p            products bought, at most PRODUCTS (Space-Saving, Metwally et al. 2005: a newcomer
                               takes the place and the count of the least). A msgpack of its own, which chats
                               needn't unpack: a flat list of PRODUCT_FIELDS values a product: sku, orders, and
                               a msgpack list again: quantity, newest ts, description
    c    map    purpose -> register: whether the customer grants it. Absent before the first word.
    i    map    other customer_id -> register: whether the two are one person; and under the empty name whether
                several people share this id, so that none of its links counts. Both ends of a link have it.
                A profile that only has c or i has neither u, f nor s.
    x    int    an erasure up to this event time (epoch ms) came before this profile began
    e    map    facet -> how long its labels are kept after their newest evidence, ms; absent: no limit

A register is [value, ts, tie]: of two writers the one of the later (ts, tie) wins. Only `register.lua` writes them.
The script carries keys that it doesn't know.

Lists are flat, and sums packed by themselves, because packing and unpacking is most of a merge: Lua's msgpack
takes one long list in half the time of many short ones, and what a delta doesn't touch stays packed. It has no
empty map (absent instead), no bin, and writes floats with integral values as ints.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgpack

DELTA_VERSION = 1
PROFILE_VERSION = 1

# A producer that repeats itself does so within its retry window; 32 events a customer is far beyond it.
RING = 32
# 48 bits: an event of a customer is mistaken for one of the last 32 once in 10^13.
RING_ID_CHARS = 8
# Enough to answer "why" with something to look at; the topics hold the rest.
PROVENANCE = 3
# A profile lists what a person keeps buying; 16 covers it and stays below 1 KB.
PRODUCTS = 16
DESCRIPTION_CHARS = 40
# Of one order. A wholesale order of 20 lines would push out all that the profile holds, and half of itself.
ORDER_PRODUCTS = 6
# Strongest labels kept in one facet of one source; packs have 10 to 40, of which a customer shows a few.
LABELS_PER_FACET = 32
PRODUCT_FIELDS = 3
# Sums of money can't be dropped, so their number is bounded: nobody shops in more; a program might.
MAX_CURRENCIES = 16
# Registers in `i`. A person has a few devices; what is linked more often is shared by many people.
MAX_LINKS = 32
# The cap on a profile. What goes first: provenance of all but the 8 strongest labels of each facet,
# then the weaker half of the labels, then the smaller half of the products. Fences never go.
MAX_PROFILE_BYTES = 16_384


def ring_id(event_id: str) -> str:
    """48 bits of an event id's BLAKE2b, as base64: RING_ID_CHARS characters."""
    return b64encode(hashlib.blake2b(event_id.encode(), digest_size=6).digest()).decode()


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def pack_list(packed: Sequence[bytes]) -> bytes:
    """A msgpack list of what is packed already."""
    head: bytes = msgpack.Packer().pack_array_header(len(packed))
    return head + b"".join(packed)


def unpack(data: bytes) -> Any:
    """Lua knows no bin type: a msgpack inside comes as a str; `blob` gives its bytes."""
    return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogateescape")


def blob(text: str) -> bytes:
    """The bytes of a msgpack within a msgpack, as `unpack` gives it."""
    return text.encode("utf-8", "surrogateescape")


def unfold(profile: bytes) -> dict[str, Any]:
    """A stored profile with flat lists as maps, the form in which people and tests think of it:
    facet -> [half_life_ms, {label: [w, t, n, model, [id, ...]]}],
    products -> {sku: [orders, quantity, ts, description]}.
    """
    content: dict[str, Any] = unpack(profile)
    for source in content.get("s", {}).values():
        for facet, flat in source.get("l", {}).items():
            labels = {}
            for at in range(1, len(flat), 2):
                w, t, n, model, ids = unpack(blob(flat[at + 1]))
                labels[flat[at]] = [w, t, n, model, ids.split("\n") if ids else []]
            source["l"][facet] = [flat[0], labels]
    orders = content.get("o")
    if orders and "p" in orders:
        flat = unpack(blob(orders["p"]))
        orders["p"] = {
            flat[at]: [flat[at + 1], *unpack(blob(flat[at + 2]))] for at in range(0, len(flat), PRODUCT_FIELDS)
        }
    return content


def canonical(unfolded: dict[str, Any]) -> bytes:
    """An unfolded profile as bytes, keys sorted and the processing time left out.

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

    return pack(ordered({key: value for key, value in unfolded.items() if key != "u"}))
