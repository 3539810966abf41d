"""Registers, tombstones, links and receipts in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from typing import Any, Literal, Self

import redis.asyncio
from redis.commands.core import AsyncScript

from streaming.errors import StoreUnavailable
from streaming.profiles import fold
from streaming.profiles.keys import (
    audience_key,
    audiences_key,
    erasures_key,
    profile_key,
    receipts_key,
    tombstone_key,
    tombstone_key_of,
)
from streaming.profiles.store import OUTAGES, constants
from streaming.settings import Settings

Written = Literal["written", "older", "erased", "full", "version"]

# Keys in one step of a walk over all of a store.
_STEP = 1_000


class ControlStore:
    """What controls do to the store. One event loop; every method is a step that may be repeated.

    Raises, in every method:
        StoreUnavailable: nothing is known of what was done; call again.
    """

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._redis = client
        self._namespace = namespace
        self._register = self._script(constants(), "register.lua")
        self._erase = self._script("", "erase.lua")

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:
        """One over a connection of its own."""
        async with redis.asyncio.from_url(
            settings.redis, socket_timeout=settings.store_timeout_s, socket_connect_timeout=settings.store_timeout_s
        ) as client:
            yield cls(client, settings.namespace)

    def _script(self, head: str, name: str) -> AsyncScript:
        text = files("streaming.profiles").joinpath(name).read_text(encoding="utf-8")
        return self._redis.register_script(head + text)

    async def write(
        self, customer_id: str, kind: Literal["c", "i"], name: str, value: bool, ts: int, tie: str
    ) -> Written:
        """Write a register of `schema`, unless a later writer was there."""
        return await self._run_register(customer_id, kind, name, "1" if value else "0", ts, tie)

    async def unlink(self, customer_id: str, other: str, ts: int) -> bool:
        """Take `other` out of a profile's links, if the link is not of after `ts`. Whether it was there."""
        return await self._run_register(customer_id, "i", other, "", ts, "") == "written"

    async def _run_register(self, customer_id: str, kind: str, name: str, value: str, ts: int, tie: str) -> Written:
        keys = self._keys(customer_id)
        with naming_outages():
            reply: bytes = await self._register(keys=keys, args=[customer_id, kind, name, value, ts, tie])
        written: Written = reply.decode()  # type: ignore[assignment]  # what register.lua says
        return written

    async def mark_erased(self, customer_id: str, erased_at: int) -> bytes | None:
        """Set the tombstone and count the erasure. Returns the profile that is to be deleted."""
        with naming_outages():
            doomed: Any = await self._erase(keys=self._keys(customer_id), args=["mark", erased_at])
            # After the tombstone and before the audiences are swept: see `ProfileStore`.
            await self._redis.incr(erasures_key(self._namespace))
        return doomed if doomed is None else bytes(doomed)

    async def mark_name(self, name: str, erased_at: int) -> None:
        """Set the tombstone of a customer whose id is no longer known."""
        tombstone = tombstone_key_of(self._namespace, name)
        with naming_outages():
            await self._erase(keys=[tombstone + b"-none", tombstone], args=["mark", erased_at])

    async def delete(self, customer_id: str, erased_at: int) -> bool:
        """Delete the profile, unless it began after `erased_at`. Whether it was there."""
        with naming_outages():
            return await self._erase(keys=self._keys(customer_id), args=["delete", erased_at]) is not None

    async def erased_at(self, customer_id: str) -> int | None:
        with naming_outages():
            found = await self._redis.get(tombstone_key(self._namespace, customer_id))
        return None if found is None else int(found)

    async def profile(self, customer_id: str) -> bytes | None:
        with naming_outages():
            found: Any = await self._redis.get(profile_key(self._namespace, customer_id))
        return found if found is None else bytes(found)

    async def leave_audiences(self, customer_id: str) -> list[str]:
        """Take a customer out of every audience there is. Returns which, as "facet/label"."""
        names = await self._audiences()
        with naming_outages():
            pipeline = self._redis.pipeline(transaction=False)
            for facet, _, label in (name.partition("/") for name in names):
                pipeline.zrem(audience_key(self._namespace, facet, label), customer_id)
            removed = await pipeline.execute()
        return [name for name, was_there in zip(names, removed, strict=True) if was_there]

    async def join_audiences(self, customer_id: str) -> None:
        """Put a customer into the audiences of the labels that the stored profile shows."""
        raw = await self.profile(customer_id)
        if raw is None:
            return
        with naming_outages():
            pipeline = self._redis.pipeline(transaction=False)
            for (facet, label), score in fold.audience_scores(raw).items():
                pipeline.zadd(audience_key(self._namespace, facet, label), {customer_id: score}, gt=True)
            await pipeline.execute()

    async def audiences(self, customer_id: str) -> list[str]:
        """The audiences that a customer is in, as "facet/label"."""
        names = await self._audiences()
        with naming_outages():
            pipeline = self._redis.pipeline(transaction=False)
            for facet, _, label in (name.partition("/") for name in names):
                pipeline.zscore(audience_key(self._namespace, facet, label), customer_id)
            scores = await pipeline.execute()
        return [name for name, score in zip(names, scores, strict=True) if score is not None]

    async def _audiences(self) -> list[str]:
        with naming_outages():
            found: Any = await self._redis.smembers(audiences_key(self._namespace))
        return sorted(name.decode() for name in found)

    async def profiles(self) -> AsyncIterator[bytes]:
        """Every profile of the store: for a search that must miss nothing, at about 100,000 a second."""
        with naming_outages():
            keys: list[bytes] = []
            async for key in self._redis.scan_iter(f"{self._namespace}:*:p", count=_STEP):
                keys.append(key)
                if len(keys) == _STEP:
                    for found in await self._values(keys):
                        yield found
                    keys = []
            for found in await self._values(keys):
                yield found

    async def _values(self, keys: list[bytes]) -> list[bytes]:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        return [found for found in await pipeline.execute() if found is not None]

    async def receipts(self, name: str) -> list[bytes]:
        """Of one customer, by the `erased_name`, oldest first."""
        with naming_outages():
            found: Any = await self._redis.lrange(receipts_key(self._namespace, name), 0, -1)
        return list(found)

    async def keep_receipt(self, name: str, receipt: bytes) -> None:
        with naming_outages():
            await self._redis.rpush(receipts_key(self._namespace, name), receipt)

    def _keys(self, customer_id: str) -> list[bytes]:
        return [profile_key(self._namespace, customer_id), tombstone_key(self._namespace, customer_id)]


@contextmanager
def naming_outages() -> Iterator[None]:
    try:
        yield
    except OUTAGES as error:
        raise StoreUnavailable(f"Redis can't take controls now ({type(error).__name__}: {error})") from error
