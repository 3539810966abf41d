"""Some fields of a profile: `fields=interests,orders`."""

from __future__ import annotations

import time
from collections.abc import Collection

from streaming.client.aio_reader import AsyncReader
from streaming.client.errors import InvalidArgument
from streaming.lookup.shapes import SelectedProfile
from streaming.profiles.keys import half_lives_key
from streaming.profiles.view import Profile

# Of a profile, beside its facets.
PARTS = frozenset({"labels", "sentiment", "orders", "events"})

# A facet that comes with a new pack is known after this.
FACETS_S = 10.0


class Facets:
    """The facets that Redis knows, to tell a facet that a customer does not show from a misspelt one."""

    def __init__(self, reader: AsyncReader, namespace: str) -> None:
        self._reader = reader
        self._namespace = namespace
        self._known: frozenset[str] = frozenset()
        self._until = 0.0

    async def check(self, fields: Collection[str]) -> None:
        """
        Raises:
            InvalidArgument: a field is neither a part of a profile nor a facet.
            StoreUnavailable
        """
        if PARTS.union(self._known).issuperset(fields):
            return
        now = time.monotonic()
        if now >= self._until:
            command = ("HKEYS", half_lives_key(self._namespace))
            (names,) = await self._reader.read(lambda server, within_s: server.ask(command, within_s=within_s))
            self._known, self._until = frozenset(name.decode() for name in names), now + FACETS_S
        if unknown := sorted(set(fields) - PARTS - self._known):
            known = ", ".join(sorted(PARTS | self._known))
            raise InvalidArgument("fields", f"{unknown[0]!r} is none of {known}")


def split(fields: str | None) -> frozenset[str] | None:
    """None for all of the profile."""
    return None if fields is None else frozenset(name.strip() for name in fields.split(","))


def select(profile: Profile, fields: frozenset[str]) -> SelectedProfile:
    selected = SelectedProfile(customer_id=profile.customer_id, updated_ms=profile.updated_ms, version=profile.version)
    if "labels" in fields:
        selected.labels = profile.labels
    elif fields - PARTS or "sentiment" in fields:
        selected.labels = [label for label in profile.labels if label.facet in fields]
    if "sentiment" in fields:
        selected.sentiment = profile.sentiment
    if "orders" in fields:
        selected.orders = profile.orders
    if "events" in fields:
        selected.events = profile.events
    return selected
