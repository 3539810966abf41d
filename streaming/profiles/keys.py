"""The names of everything in Redis. Pure: no connection, no settings.

A customer's keys carry the id as hash tag, so that in a cluster all of one customer lives in one
slot and the merge script may touch them together. Audiences and half-lives belong to no customer.
"""

from __future__ import annotations

import binascii
import hashlib
import itertools
import string
from functools import cache, lru_cache

SLOTS = 16_384  # of a Redis Cluster


def profile_key(namespace: str, customer_id: str) -> bytes:
    """Where the profile (msgpack, see `schema`) of one customer stands."""
    return f"{namespace}:{{{customer_id}}}:p".encode()


def audience_key(namespace: str, facet: str, label: str) -> bytes:
    """The sorted set of the customers who show a label.

    Member: customer_id. Score: A = log2 of the undecayed sum of evidence, in half-lives since the
    Unix epoch, so that the weight at time T is 2^(A - T/half_life): the order never changes with time.
    """
    return f"{namespace}:a:{facet}/{label}".encode()


def audiences_key(namespace: str) -> bytes:
    """The set of all "facet/label" that have an audience: where an erasure must look."""
    return f"{namespace}:l".encode()


def half_lives_key(namespace: str) -> bytes:
    """The hash facet -> half-life in ms, needed to read an audience's scores."""
    return f"{namespace}:h".encode()


def erasures_key(namespace: str) -> bytes:
    """How many erasures there were. A worker that sees it move looks whether it has just written an erased
    customer back into an audience."""
    return f"{namespace}:g".encode()


def erased_name(customer_id: str) -> str:
    """What stays of an erased customer, "tag:hash": enough to find the tombstone again from the id, not to
    tell the id (but whoever can guess ids can hash guesses: it is a pseudonym).

    The tag is one of a fixed table of short strings, the one in the id's slot of a Redis Cluster: tombstone
    and profile must share a slot for one script to touch both, and the id itself must not be in the name.
    """
    encoded = customer_id.encode()
    digest = hashlib.sha256(b"limner " + encoded).hexdigest()[:32]  # 128 bits: no two customers share them
    return f"{_tags()[binascii.crc_hqx(encoded, 0) % SLOTS]}:{digest}"


# Cached: hashing and encoding them is 3 µs, a tenth of a merge. 65,536 pairs take about 25 MB.
@lru_cache(maxsize=65_536)
def merge_keys(namespace: str, customer_id: str) -> tuple[bytes, bytes]:
    """`profile_key` and `tombstone_key`, which merges ask for together and often."""
    return profile_key(namespace, customer_id), tombstone_key(namespace, customer_id)


def tombstone_key(namespace: str, customer_id: str) -> bytes:
    """Where it stands until when (epoch ms) a customer's events are erased."""
    return tombstone_key_of(namespace, erased_name(customer_id))


def tombstone_key_of(namespace: str, name: str) -> bytes:
    """`tombstone_key` by the `erased_name`."""
    tag, _, digest = name.partition(":")
    return f"{namespace}:{{{tag}}}:x:{digest}".encode()


def receipts_key(namespace: str, name: str) -> bytes:
    """The list of the receipts of one customer's erasures, by the `erased_name`."""
    tag, _, digest = name.partition(":")
    return f"{namespace}:{{{tag}}}:r:{digest}".encode()


@cache
def _tags() -> list[str]:
    """For each slot the first string of four in this alphabet that falls into it. Part of the names of keys
    that last: never to be changed."""
    tags: dict[int, str] = {}
    for letters in itertools.product(string.ascii_lowercase + string.digits, repeat=4):
        tag = "".join(letters)
        tags.setdefault(binascii.crc_hqx(tag.encode(), 0) % SLOTS, tag)
        if len(tags) == SLOTS:
            break
    return [tags[slot] for slot in range(SLOTS)]
