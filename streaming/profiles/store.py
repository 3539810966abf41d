"""Profiles in Redis: the merge script, and the audience sets updated after it."""

from __future__ import annotations

from collections.abc import Sequence
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
from streaming.profiles import schema
from streaming.profiles.delta import Delta
from streaming.profiles.keys import audience_key, half_lives_key, profile_key

# What time mends: the store is away, starting, failing over, or full. Anything else is the delta's fault.
_OUTAGES = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError)


class MergeRefused(LimnerError):
    """The script refused deltas that no retry will make acceptable: `deltas` with the store's words."""

    def __init__(self, deltas: list[tuple[Delta, str]]) -> None:
        super().__init__(f"the store refused {len(deltas)} deltas: {deltas[0][1]}")
        self.deltas = deltas


# Deltas in one call of the script: enough to make its fixed cost small (a third of a merge), few enough that
# a look-up waits for about a millisecond at most.
CHUNK = 16


@cache
def merge_script() -> str:
    """merge.lua with the constants of schema.py in front, so that each has one home."""
    numbers = ((name, value) for name, value in vars(schema).items() if name.isupper() and isinstance(value, int))
    constants = "".join(f"local {name} = {value}\n" for name, value in numbers)
    return constants + files("streaming.profiles").joinpath("merge.lua").read_text(encoding="utf-8")


class ProfileStore:
    """Merges deltas. One instance a worker; safe to call from several tasks of one event loop."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._redis = client
        self._namespace = namespace
        self._sha = ""
        self._half_lives: dict[str, int] = {}

    async def merge(self, deltas: Sequence[Delta]) -> None:
        """Apply `deltas` in order, each atomically, then bring the audience sets up to date.

        Repeating a call, whole or in part, changes nothing: profiles by their fence, audiences because
        a label's score only ever grows (ZADD GT).

        Raises:
            StoreUnavailable: nothing is known of what was applied; call again.
            MergeRefused: all other deltas were applied.
        """
        if not deltas:
            return
        refused: list[tuple[Delta, str]] = []
        merged: list[tuple[int, int, int]] = []  # events that were new, 1 for a new profile, its size
        scores: dict[tuple[str, str, int], dict[str, float]] = {}
        try:
            for delta, reply in zip(deltas, await self._run_script(deltas), strict=True):
                applied, *rest = schema.unpack(reply)
                if applied < 0:
                    refused.append((delta, rest[0]))
                    continue
                created, size, flat = rest
                merged.append((applied, created, size))
                for at in range(0, len(flat), 2):
                    scores.setdefault(delta.labels[flat[at]], {})[delta.customer_id] = flat[at + 1]
            await self._update_audiences(scores)
        except _OUTAGES as error:
            raise StoreUnavailable(f"Redis can't take merges now ({type(error).__name__}: {error})") from error
        self._count(merged)
        if refused:
            raise MergeRefused(refused)

    async def _run_script(self, deltas: Sequence[Delta]) -> list[bytes]:
        if not self._sha:
            self._sha = await self._redis.script_load(merge_script())
        pipeline = self._redis.pipeline(transaction=False)
        for first in range(0, len(deltas), CHUNK):
            chunk = deltas[first : first + CHUNK]
            keys = [profile_key(self._namespace, delta.customer_id) for delta in chunk]
            pipeline.evalsha(self._sha, len(chunk), *keys, *(delta.data for delta in chunk))
        try:
            replies: list[list[bytes]] = await pipeline.execute()
        except NoScriptError:  # a store that was restarted; what ran before stays behind its fence
            self._sha = ""
            return await self._run_script(deltas)
        return [reply for chunk in replies for reply in chunk]

    async def _update_audiences(self, scores: dict[tuple[str, str, int], dict[str, float]]) -> None:
        if not scores:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for (facet, label, _), members in scores.items():
            pipeline.zadd(audience_key(self._namespace, facet, label), members, gt=True)
        half_lives = {facet: half_life for facet, _, half_life in scores}
        for facet, half_life in half_lives.items() - self._half_lives.items():
            pipeline.hset(half_lives_key(self._namespace), facet, str(half_life))
        await pipeline.execute()
        self._half_lives |= half_lives

    @staticmethod
    def _count(merged: Sequence[tuple[int, int, int]]) -> None:
        new = sum(applied > 0 for applied, _, _ in merged)
        metrics.MERGES.labels("applied").inc(new)
        metrics.MERGES.labels("repeat").inc(len(merged) - new)
        metrics.PROFILES.inc(sum(created for _, created, _ in merged))
        for _, _, size in merged[::CHUNK]:  # a sample: observing each would cost a tenth of its merge
            metrics.PROFILE_BYTES.observe(size)
