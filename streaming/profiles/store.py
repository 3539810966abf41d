"""Profiles in Redis: the merge script, and the audience sets updated after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import redis.asyncio
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streaming import metrics
from streaming.errors import LimnerError, StoreUnavailable
from streaming.events.types import Position
from streaming.profiles import schema
from streaming.profiles.delta import Delta
from streaming.profiles.keys import (
    audience_key,
    audiences_key,
    erasures_key,
    half_lives_key,
    merge_keys,
    tombstone_key,
)

# What time mends: the store is away, starting, failing over, or full. Anything else is the delta's fault.
OUTAGES = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError)


class MergeRefused(LimnerError):
    """The script refused records that no retry will make acceptable: `refused` with the store's words.

    `erased` is what `ProfileStore.merge` would have returned.
    """

    def __init__(self, refused: list[tuple[Position, str]], erased: list[Delta]) -> None:
        super().__init__(f"the store refused {len(refused)} records: {refused[0][1]}")
        self.refused = refused
        self.erased = erased


# Deltas in one call of the script: enough to make its fixed cost small (a third of a merge), few enough that
# a look-up waits for about a millisecond at most.
CHUNK = 16


@cache
def constants() -> str:
    """The numbers of schema.py in Lua, so that each has one home."""
    numbers = ((name, value) for name, value in vars(schema).items() if name.isupper() and isinstance(value, int))
    return "".join(f"local {name} = {value}\n" for name, value in numbers)


def merge_script(*, analytics: bool, retention_ms: Mapping[str, int]) -> str:
    """merge.lua with what it must know in front; see `ProfileStore`."""
    retention = ", ".join(f"[{_lua_string(facet)}] = {keep}" for facet, keep in sorted(retention_ms.items()))
    told = f"local ANALYTICS = {str(analytics).lower()}\nlocal RETENTION = {{{retention}}}\n"
    return constants() + told + files("streaming.profiles").joinpath("merge.lua").read_text(encoding="utf-8")


def _lua_string(text: str) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'


class ProfileStore:
    """Merges deltas. One instance a worker; safe to call from several tasks of one event loop.

    Args:
        analytics: whether events of a customer who said nothing about it may be analysed (`consent_default`).
        retention_ms: facet -> how long its labels are kept after their newest evidence.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        namespace: str,
        *,
        analytics: bool = True,
        retention_ms: Mapping[str, int] | None = None,
    ) -> None:
        self._redis = client
        self._namespace = namespace
        self._script = merge_script(analytics=analytics, retention_ms=retention_ms or {})
        self._sha = ""
        self._half_lives: dict[str, int] = {}
        self._audiences: set[tuple[str, str]] = set()
        self._erasures: bytes | None = None

    async def merge(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Apply `deltas` in order, each atomically, then bring the audience sets up to date.

        Repeating a call, whole or in part, changes nothing: profiles by their fence, audiences because
        a label's score only ever grows (ZADD GT).

        Returns the deltas that hold events of before their customer's erasure, which were not applied:
        they should leave Kafka too.

        Raises:
            StoreUnavailable: nothing is known of what was applied; call again.
            MergeRefused: all other records were applied.
        """
        if not deltas:
            return []
        erasures = self._erasures
        refused: list[tuple[Position, str]] = []
        erased: list[Delta] = []
        merged: list[tuple[int, int, int]] = []  # events that were new, 1 for a new profile, its size
        scores: dict[tuple[str, str, int], dict[str, float]] = {}
        expired: list[tuple[str, str, str]] = []
        try:
            for delta, reply in zip(deltas, await self._run_script(deltas), strict=True):
                applied, *rest = schema.unpack(reply)
                if applied < 0:
                    refused += [(position, rest[0]) for position in delta.positions]
                    continue
                created, size, flat, *more = rest
                merged.append((applied, created, size))
                for at in range(0, len(flat), 2):
                    scores.setdefault(delta.labels[flat[at]], {})[delta.customer_id] = flat[at + 1]
                if more:
                    gone, of_erased, offsets, why = more
                    expired += [(delta.customer_id, *gone[at : at + 2]) for at in range(0, len(gone), 2)]
                    refused += [(position, why) for position in delta.positions if position.offset in offsets]
                    if of_erased:
                        erased.append(delta)
            await self._update_audiences(scores, expired)
            if self._erasures != erasures:
                await self._mend_audiences(deltas)
        except OUTAGES as error:
            raise StoreUnavailable(f"Redis can't take merges now ({type(error).__name__}: {error})") from error
        self._count(merged)
        if refused:
            raise MergeRefused(refused, erased)
        return erased

    async def _run_script(self, deltas: Sequence[Delta]) -> list[bytes]:
        if not self._sha:
            self._sha = await self._redis.script_load(self._script)
        pipeline = self._redis.pipeline(transaction=False)
        namespace = self._namespace
        for first in range(0, len(deltas), CHUNK):
            chunk = deltas[first : first + CHUNK]
            keys: list[bytes] = []
            for delta in chunk:
                keys += merge_keys(namespace, delta.customer_id)
            together = schema.pack_list([delta.data for delta in chunk])
            pipeline.evalsha(self._sha, len(keys), *keys, together)
        try:
            replies: list[list[bytes]] = await pipeline.execute()
        except NoScriptError:  # a store that was restarted; what ran before stays behind its fence
            self._sha = ""
            return await self._run_script(deltas)
        return [reply for chunk in replies for reply in chunk]

    async def _update_audiences(
        self, scores: dict[tuple[str, str, int], dict[str, float]], expired: Sequence[tuple[str, str, str]]
    ) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for customer_id, facet, label in expired:
            pipeline.zrem(audience_key(self._namespace, facet, label), customer_id)
        for (facet, label, _), members in scores.items():
            pipeline.zadd(audience_key(self._namespace, facet, label), members, gt=True)
        half_lives = {facet: half_life for facet, _, half_life in scores}
        for facet, half_life in half_lives.items() - self._half_lives.items():
            pipeline.hset(half_lives_key(self._namespace), facet, str(half_life))
        audiences = {(facet, label) for facet, label, _ in scores}
        for facet, label in audiences - self._audiences:
            pipeline.sadd(audiences_key(self._namespace), f"{facet}/{label}")
        pipeline.get(erasures_key(self._namespace))
        *_, self._erasures = await pipeline.execute()
        self._half_lives |= half_lives
        self._audiences |= audiences

    async def _mend_audiences(self, deltas: Sequence[Delta]) -> None:
        """An erasure may have emptied audiences between the merge of a customer and this store's update of them:
        take out whoever has a tombstone, and put back what is still there (merging a repeat tells)."""
        pipeline = self._redis.pipeline(transaction=False)
        for delta in deltas:
            pipeline.exists(tombstone_key(self._namespace, delta.customer_id))
        marked = await pipeline.execute()
        erased = [delta for delta, found in zip(deltas, marked, strict=True) if found]
        if not erased:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for delta in erased:
            for facet, label, _ in delta.labels:
                pipeline.zrem(audience_key(self._namespace, facet, label), delta.customer_id)
        await pipeline.execute()
        scores: dict[tuple[str, str, int], dict[str, float]] = {}
        for delta, reply in zip(erased, await self._run_script(erased), strict=True):
            applied, *rest = schema.unpack(reply)
            flat = rest[2] if applied >= 0 else []
            for at in range(0, len(flat), 2):
                scores.setdefault(delta.labels[flat[at]], {})[delta.customer_id] = flat[at + 1]
        await self._update_audiences(scores, [])

    @staticmethod
    def _count(merged: Sequence[tuple[int, int, int]]) -> None:
        new = sum(applied > 0 for applied, _, _ in merged)
        metrics.MERGES.labels("applied").inc(new)
        metrics.MERGES.labels("repeat").inc(len(merged) - new)
        metrics.PROFILES.inc(sum(created for _, created, _ in merged))
        for _, _, size in merged[::CHUNK]:  # a sample: observing each would cost a tenth of its merge
            metrics.PROFILE_BYTES.observe(size)
