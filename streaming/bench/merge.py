"""The merge script, pipelined, beside plain pipelined SETs of values of the same size."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from streaming.embedded.store import Store
from streaming.events.types import Chat, Position
from streaming.profiles.delta import Delta, Scored, build
from streaming.profiles.keys import profile_key
from streaming.profiles.store import ProfileStore

_NAMESPACE = "bench"
_BATCH = 256  # the worker's default for orders
_ROUNDS = 15  # alternating, so that a drifting machine slows both alike
_ROUND_MERGES = 4_096
_NOW = 1_700_000_000_000


@dataclass(frozen=True)
class _Ref:
    facet: str
    label: str
    half_life_ms: int = 30 * 86_400_000


_REFS = [_Ref(facet, f"label-{i}") for facet in ("interests", "needs", "sentiment") for i in range(8)]


class _Deltas:
    """Deltas of one event with three pieces of evidence, for customers drawn evenly."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  the same work in every run
        self._offset = 0

    def one(self, customer: int, events: int = 1) -> Delta:
        scored = []
        for _ in range(events):
            self._offset += 1
            evidence = [
                (index, round(self._random.random(), 4)) for index in sorted(self._random.sample(range(len(_REFS)), 3))
            ]
            event = Chat(
                event_id=f"event-{self._offset}",
                customer_id=f"customer-{customer}",
                ts=_NOW + self._offset,
                text="",
            )
            scored.append(Scored(Position("chat-events", 0, "bench", self._offset), event, (), evidence))
        return build(scored, "chat", _REFS, "bench-model", _NOW)[0]

    def batches(self, customers: int, count: int) -> Iterator[list[Delta]]:
        for _ in range(count // _BATCH):
            yield [self.one(self._random.randrange(customers)) for _ in range(_BATCH)]


async def _merge_rate(store: ProfileStore, batches: Sequence[list[Delta]]) -> float:
    started = time.perf_counter()
    for batch in batches:
        await store.merge(batch)
    return sum(map(len, batches)) / (time.perf_counter() - started)


async def _set_rate(client: redis.asyncio.Redis, batches: Sequence[list[Delta]], value: bytes) -> float:
    started = time.perf_counter()
    for batch in batches:
        pipeline = client.pipeline(transaction=False)
        for delta in batch:
            pipeline.set(b"set:" + profile_key(_NAMESPACE, delta.customer_id), value)
        await pipeline.execute()
    return sum(map(len, batches)) / (time.perf_counter() - started)


async def _beside_sets(client: redis.asyncio.Redis) -> dict[str, Any]:
    store, deltas, customers = ProfileStore(client, _NAMESPACE), _Deltas(1), 2_000
    for customer in range(customers):
        await store.merge([deltas.one(customer, events=10)])
    sizes = [await client.strlen(profile_key(_NAMESPACE, f"customer-{i}")) for i in range(0, customers, 20)]
    value = bytes(int(statistics.median(sizes)))
    merges, sets = [], []
    for _ in range(_ROUNDS):
        batches = list(deltas.batches(customers, _ROUND_MERGES))
        merges.append(await _merge_rate(store, batches))
        sets.append(await _set_rate(client, batches, value))
    ratios = [m / s for m, s in zip(merges, sets, strict=True)]
    return {
        "merges_per_s": round(statistics.median(merges)),
        "sets_per_s": round(statistics.median(sets)),
        "ratio": round(statistics.median(ratios), 3),
        "profile_bytes": len(value),
    }


async def _growth(client: redis.asyncio.Redis, sizes: Sequence[tuple[int, int]]) -> list[float]:
    """Merge rates over stores of (customers, events each), all filled first and then measured in turns."""
    stores = [ProfileStore(client, f"{_NAMESPACE}{i}") for i in range(len(sizes))]
    deltas = [_Deltas(i) for i in range(len(sizes))]
    for store, of_store, (customers, events) in zip(stores, deltas, sizes, strict=True):
        # at most 25 events a delta, as a batch of a chatty customer would bring
        pieces = [25] * (events // 25) + [events % 25] * (events % 25 > 0)
        for piece in pieces:
            for first in range(0, customers, _BATCH):
                await store.merge([of_store.one(c, piece) for c in range(first, min(first + _BATCH, customers))])
    rates: list[list[float]] = [[] for _ in sizes]
    for _ in range(_ROUNDS):
        for i, (customers, _) in enumerate(sizes):
            batches = list(deltas[i].batches(customers, _ROUND_MERGES))
            rates[i].append(await _merge_rate(stores[i], batches))
    await client.flushall()
    return [statistics.median(of_size) for of_size in rates]


async def _run(url: str) -> dict[str, Any]:
    client = redis.asyncio.from_url(url)
    figures = await _beside_sets(client)
    await client.flushall()
    customers = (1_000, 10_000, 100_000)
    by_customers = await _growth(client, [(count, 1) for count in customers])
    history = (10, 100, 1_000)
    by_history = await _growth(client, [(200, events) for events in history])
    await client.aclose()
    return {
        **figures,
        "merges_per_s_by_customers": dict(zip(map(str, customers), map(round, by_customers), strict=True)),
        "merges_per_s_by_history": dict(zip(map(str, history), map(round, by_history), strict=True)),
        "growth_customers_ratio": round(by_customers[-1] / by_customers[0], 3),
        "growth_history_ratio": round(by_history[-1] / by_history[0], 3),
    }


def run() -> dict[str, Any]:
    """Merges/s of the script with audiences, of 256 in one pipeline, over an embedded store."""
    with Store.start() as store:
        return asyncio.run(_run(store.url))
