"""A store of many customers, each with a profile that the merge script made."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

import redis
import redis.asyncio

from streaming.events.types import Chat, Line, Order, Position
from streaming.profiles.delta import Scored, build
from streaming.profiles.keys import profile_key
from streaming.profiles.store import ProfileStore

NAMESPACE = "bench"
DAY_MS = 86_400_000
# Profiles that the script really merges; the others are these under other ids, which all have as many characters.
_KINDS = 128
_CHATS, _ORDERS = 3, 2  # of one customer: together a profile of about 1 KB
_BATCH = 2_000


@dataclass(frozen=True)
class _Ref:
    facet: str
    label: str
    half_life_ms: int = 30 * DAY_MS


REFS = [
    *(_Ref("interests", f"interest-{i}") for i in range(16)),
    *(_Ref("needs", f"need-{i}") for i in range(8)),
    *(_Ref("sentiment", f"sentiment-{i}") for i in range(3)),
]


def customer_id(number: int) -> str:
    return f"customer-{number:08}"


def fill(url: str, customers: int, now_ms: int) -> int:
    """Write the profiles of `customer_id(0)` to `customer_id(customers - 1)`; their mean size in bytes."""
    asyncio.run(_merge_kinds(url, min(customers, _KINDS), now_ms))
    with redis.Redis.from_url(url) as client:
        keys = [profile_key(NAMESPACE, customer_id(number)) for number in range(min(customers, _KINDS))]
        kinds = [bytes(found) for found in client.mget(keys) if found]
        for first in range(_KINDS, customers, _BATCH):
            pipeline = client.pipeline(transaction=False)
            for number in range(first, min(first + _BATCH, customers)):
                mine = customer_id(number)
                kind = number % _KINDS
                pipeline.set(
                    profile_key(NAMESPACE, mine), kinds[kind].replace(customer_id(kind).encode(), mine.encode())
                )
            pipeline.execute()
    return round(sum(map(len, kinds)) / len(kinds))


async def _merge_kinds(url: str, customers: int, now_ms: int) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        store = ProfileStore(client, NAMESPACE)
        chance = random.Random(9)  # noqa: S311  the same profiles in every run
        for number in range(customers):
            await store.merge(build(_chats(number, now_ms, chance), "chat", REFS, "bench-model", now_ms))
            await store.merge(build(_orders(number, now_ms, chance), "order", REFS, "bench-model", now_ms))


def _evidence(chance: random.Random) -> list[tuple[int, float]]:
    return [(index, round(chance.uniform(0.3, 1), 4)) for index in sorted(chance.sample(range(len(REFS)), 3))]


def _chats(number: int, now_ms: int, chance: random.Random) -> Iterator[Scored]:
    for i in range(_CHATS):
        chat = Chat(
            event_id=f"chat-{number}-{i}", customer_id=customer_id(number), ts=now_ms - (i + 1) * DAY_MS, text="",
        )  # fmt: skip
        yield Scored(Position("chat-events", 0, "bench", number * _CHATS + i), chat, (), _evidence(chance))


def _orders(number: int, now_ms: int, chance: random.Random) -> Iterator[Scored]:
    for i in range(_ORDERS):
        line = Line(sku=f"sku-{chance.randrange(40)}", description="WHITE HANGING HEART", quantity=2, unit_price=2.55)
        order = Order(
            event_id=f"order-{number}-{i}", customer_id=customer_id(number), ts=now_ms - (i + 1) * DAY_MS,
            order_id=f"order-{number}-{i}", currency="GBP", lines=(line,),  # type: ignore[arg-type]
        )  # fmt: skip
        position = Position("order-events", 0, "bench", number * _ORDERS + i)
        yield Scored(position, order, (line.description,), _evidence(chance))
