"""The client for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Self, cast

from streaming.client import audience as audiences
from streaming.client import calls, tokens
from streaming.client.aio_reader import AsyncReader
from streaming.client.aio_watch import AsyncWatch
from streaming.client.audience import Audience
from streaming.client.cache import MISSING, ProfileCache
from streaming.client.explain import Explanation, explain
from streaming.client.tokens import Token
from streaming.controls.types import Purpose
from streaming.profiles.keys import profile_key
from streaming.profiles.view import Profile


class AsyncProfileClient:
    """`ProfileClient` with awaits: same arguments, results and exceptions. For one event loop.

    async with AsyncProfileClient("redis://127.0.0.1:6379/0") as profiles:
        profile = await profiles.get("customer-17")
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        *,
        namespace: str = "lm",
        timeout_s: float = calls.TIMEOUT_S,
        deadline_s: float | None = None,
        retries: int = calls.RETRIES,
        cache_mb: float = 0,
        replicas: Sequence[str] = (),
        hedge_after_ms: float = 0,
        consent_default: Mapping[str, bool] | None = None,
    ) -> None:
        options = calls.options(url, namespace, timeout_s, deadline_s, retries, cache_mb, replicas, hedge_after_ms)
        self._namespace = namespace
        self._consent_default = calls.checked_defaults(consent_default)
        self._reader = AsyncReader(options)
        self._watch = None
        if options.cache_bytes:
            self._watch = AsyncWatch(ProfileCache(namespace, options.cache_bytes), self._reader.primary.announcing)

    async def get(self, customer_id: str, *, purpose: Purpose | None = None) -> Profile | None:
        """See `ProfileClient.get`."""
        calls.checked_purpose(purpose)
        return calls.for_purpose(await self._find(customer_id), purpose, self._consent_default)

    async def get_many(self, ids: Iterable[str]) -> dict[str, Profile | None]:
        """See `ProfileClient.get_many`."""
        wanted = calls.checked_ids(ids)
        if self._watch is None:
            return await self._people(wanted, (await self._many(wanted))[0])
        kept = {customer_id: self._watch.cache.get(customer_id) for customer_id in wanted}
        missing = [customer_id for customer_id, profile in kept.items() if profile is MISSING]
        return cast(dict[str, Profile | None], kept | await self._read_and_keep(missing, self._watch))

    async def audience(
        self, facet: str, label: str, limit: int = 100, min_strength: float = 0.0, cursor: str | None = None
    ) -> Audience:
        """See `ProfileClient.audience`."""
        page = audiences.query(facet, label, limit, min_strength, cursor)
        commands = audiences.commands(self._namespace, page)
        half_life, members = await self._reader.read(lambda server, within_s: server.ask(*commands, within_s=within_s))
        return audiences.read(page, half_life, members, calls.now_ms())

    async def explain(self, customer_id: str) -> Explanation | None:
        """See `ProfileClient.explain`."""
        reply = await self._value(calls.checked_id(customer_id))
        return None if reply is None else explain(reply, calls.now_ms())

    async def wait_for(self, token: str | Token, timeout_s: float, *, purpose: Purpose | None = None) -> Profile:
        """See `ProfileClient.wait_for`."""
        calls.checked_purpose(purpose)
        token = calls.checked_token(token, timeout_s)
        end = monotonic() + timeout_s
        for pause_s in calls.wait_pauses():
            reply = await self._value(token.customer_id)
            if reply is not None and tokens.holds(reply, token):
                if self._watch is not None:  # the announcement may come later than this answer
                    self._watch.cache.forget(token.customer_id)
                found = await self._people([token.customer_id], [reply])
                if (profile := found[token.customer_id]) is not None:
                    return calls.for_purpose(profile, purpose, self._consent_default)
            left_s = end - monotonic()
            if left_s <= 0:
                break
            await asyncio.sleep(min(pause_s, left_s))
        raise calls.not_yet(token, timeout_s)

    async def ping(self) -> None:
        """See `ProfileClient.ping`."""
        await self._reader.read(lambda server, within_s: server.ask(("PING",), within_s=within_s))

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()
        await self._reader.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _find(self, customer_id: str) -> Profile | None:
        if self._watch is not None:
            kept = self._watch.cache.get(customer_id)
            if kept is not MISSING:
                return kept
            return (await self._read_and_keep([calls.checked_id(customer_id)], self._watch))[customer_id]
        key = profile_key(self._namespace, calls.checked_id(customer_id))
        reply, _ = await self._reader.read_any(lambda server, within_s: server.one(key, within_s))
        return (await self._people([customer_id], [reply]))[customer_id]

    async def _value(self, customer_id: str) -> bytes | None:
        """The stored profile, from the primary."""
        key = profile_key(self._namespace, customer_id)
        return await self._reader.read(lambda server, within_s: server.one(key, within_s))

    async def _many(self, ids: Sequence[str]) -> tuple[list[bytes | None], bool]:
        """The stored profiles, and whether the primary gave them."""
        if not ids:
            return [], True
        keys = [profile_key(self._namespace, customer_id) for customer_id in ids]
        return await self._reader.read_any(lambda server, within_s: server.many(keys, within_s))

    async def _read_and_keep(self, ids: Sequence[str], watch: AsyncWatch) -> dict[str, Profile | None]:
        cache = watch.cache
        keys = {customer_id: profile_key(self._namespace, customer_id) for customer_id in ids}
        tickets = cache.begin(keys, self._reader.primary.source, watch.ensure)
        try:
            replies, from_primary = await self._many(ids)
            profiles = await self._people(ids, replies)
            if from_primary:  # a replica may still lack what was announced before
                cache.store(tickets, replies, profiles)
        finally:
            cache.abandon(tickets)
        return profiles

    async def _people(self, ids: Sequence[str], replies: Sequence[bytes | None]) -> dict[str, Profile | None]:
        """The profiles of the persons, with a round trip for each step that links lead away from `ids`."""
        known: calls.Known = dict(zip(ids, replies, strict=True))
        while missing := calls.linked(ids, known):
            known.update(zip(missing, (await self._many(missing))[0], strict=True))
        return calls.read_people(ids, known, calls.now_ms())
