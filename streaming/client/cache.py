"""Profiles kept in the caller's process, for as long as Redis promises to say when one changes. Pure: no connection.

The server broadcasts the keys that change below the namespace's prefix (`CLIENT TRACKING ... BCAST`) to a connection
of its own; `watch` and `aio_watch` hold it. What is kept counts only while that connection is proved to be alive:
`keep_trusting` moves the moment up to which it is. Broadcast and not by key, since the promise then rests on that one
connection: the server forgets what a connection has read when it closes, and says nothing.

A strength decays between two readings. Within REREAD_S a kept profile is given out as it is; after that the stored
bytes, which are kept too, are read anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from time import monotonic
from typing import Final, Literal

from streaming.client.calls import FAILURES, now_ms
from streaming.profiles import fold
from streaming.profiles.keys import profile_key
from streaming.profiles.view import Profile

# A strength moves by at most 0.255 of the share of a half-life that passes: in 10 s, with a half-life of 3 days (the
# shortest in the shipped packs), by 0.00001.
REREAD_S = 10.0

# How often the connection is asked for a sign of life, and for how long one counts. The second bounds how old a kept
# profile can be behind a server that hangs or a network that drops without a word.
BEAT_S = 0.25
TRUST_S = 1.0

# Bytes of memory of an entry, measured with tracemalloc: itself and its place in the dictionary; each label and product
# as objects; each stored byte once as stored and once in strings.
COST = 600
COST_OF_LABEL = 550
COST_OF_PRODUCT = 270
COST_OF_BYTE = 2


class Missing(Enum):
    MISSING = "not kept"


MISSING: Final = Missing.MISSING


class _Entry:
    __slots__ = ("cost", "profile", "raw", "reread_at")

    def __init__(self, raw: bytes | None, profile: Profile | None) -> None:
        self.raw = raw if profile is not None else None
        self.profile = profile
        self.reread_at = monotonic() + REREAD_S
        self.cost = COST
        if raw is not None and profile is not None:
            products = len(profile.orders.top_products) if profile.orders else 0
            self.cost += COST_OF_BYTE * len(raw) + COST_OF_LABEL * len(profile.labels) + COST_OF_PRODUCT * products


class ProfileCache:
    """The most recently used profiles, up to `max_bytes`. Thread-safe.

    A read that fills it calls `begin` before it asks and `store` after: a change announced in between makes `store`
    keep nothing. `sources` are the servers that announce: one, or the primaries of a cluster.
    """

    def __init__(self, namespace: str, max_bytes: int) -> None:
        self._before, self._behind = profile_key(namespace, "\n").split(b"\n")  # no id has a newline
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._reading: dict[str, object] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._trusted: dict[str, float] = {}  # source -> until when, by the monotonic clock
        self._trusted_until = 0.0  # the earliest of them

    @property
    def prefix(self) -> bytes:
        """Of the keys to be told of."""
        return self._before

    def get(self, customer_id: str) -> Profile | Literal[Missing.MISSING] | None:
        """The profile, None for a customer known to have none, or MISSING."""
        try:
            entry = self._entries.get(customer_id)
        except TypeError:  # not hashable, so no id
            return MISSING
        if entry is None:
            return MISSING
        now = monotonic()
        if now > self._trusted_until:
            return MISSING
        if now > entry.reread_at and entry.raw is not None:
            entry.profile = Profile.from_bytes(entry.raw, now_ms())
            entry.reread_at = now + REREAD_S
        try:
            self._entries.move_to_end(customer_id)
        except KeyError:  # it changed this moment
            return MISSING
        return entry.profile

    def begin(
        self, keys: Mapping[str, bytes], source_of: Callable[[bytes], str], ensure: Callable[[str], None]
    ) -> dict[str, object]:
        """Customers about to be read, each with its key, to what `store` wants back for each that may be kept.

        `source_of` names the server of a key; `ensure` has a server watched that is not, and returns at once.
        """
        tickets: dict[str, object] = {}
        for customer_id, key in keys.items():
            try:
                source = source_of(key)
            except FAILURES:  # a cluster not known yet
                continue
            if self._trusted.get(source, 0.0) < monotonic():
                ensure(source)
            else:
                tickets[customer_id] = self._reading[customer_id] = object()
        return tickets

    def store(
        self, tickets: Mapping[str, object], replies: Iterable[bytes | None], profiles: Mapping[str, Profile | None]
    ) -> None:
        """Keep what was read: the stored bytes and the profiles made of them, in the same order. Not a profile that
        other ids' are part of: it would have to go when those change."""
        entries = [
            (it, _Entry(raw, profile))
            for raw, (it, profile) in zip(replies, profiles.items(), strict=True)
            if raw is None or not fold.neighbours(raw)
        ]
        with self._lock:
            for customer_id, entry in entries:
                if self._reading.get(customer_id) is tickets.get(customer_id, self):  # `self`: is no ticket
                    del self._reading[customer_id]
                    self._drop(customer_id)
                    self._entries[customer_id] = entry
                    self._bytes += entry.cost
            while self._bytes > self._max_bytes:
                self._bytes -= self._entries.popitem(last=False)[1].cost

    def abandon(self, tickets: Mapping[str, object]) -> None:
        """The read has ended; what was not stored won't be."""
        with self._lock:
            for customer_id, ticket in tickets.items():
                if self._reading.get(customer_id) is ticket:
                    del self._reading[customer_id]

    def changed(self, keys: Iterable[bytes] | None) -> None:
        """The server announces that these keys changed; None: all (FLUSHALL, FLUSHDB)."""
        if keys is None:
            self._empty()
            return
        start, end = len(self._before), -len(self._behind)
        with self._lock:
            for key in keys:
                if key.endswith(self._behind):  # there are others below the prefix
                    customer_id = key[start:end].decode()
                    self._reading.pop(customer_id, None)
                    self._drop(customer_id)

    def forget(self, customer_id: str) -> None:
        with self._lock:
            self._reading.pop(customer_id, None)
            self._drop(customer_id)

    def keep_trusting(self, source: str, asked_at: float) -> None:
        """The server answered what it was asked at `asked_at`: all changes before that have been announced."""
        with self._lock:
            self._trusted[source] = asked_at + TRUST_S
            self._trusted_until = min(self._trusted.values())

    def lost(self, source: str) -> None:
        """The connection to `source` broke, or has yet to be made: changes go unnoticed."""
        self._empty()
        with self._lock:
            self._trusted[source] = 0.0
            self._trusted_until = 0.0

    def gone(self, source: str) -> None:
        """`source` has left the cluster."""
        with self._lock:
            self._trusted.pop(source, None)
            self._trusted_until = min(self._trusted.values(), default=0.0)

    def _empty(self) -> None:
        with self._lock:
            self._entries.clear()
            self._reading.clear()
            self._bytes = 0

    def _drop(self, customer_id: str) -> None:
        entry = self._entries.pop(customer_id, None)
        if entry is not None:
            self._bytes -= entry.cost
