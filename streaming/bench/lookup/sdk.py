"""The SDK's look-ups beside a plain GET and msgpack, one caller, in turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgpack
import redis

from streaming.bench.lookup.fill import NAMESPACE, customer_id
from streaming.client import ProfileClient
from streaming.profiles.keys import profile_key

_ROUNDS = 40  # in turns, so that a drifting machine slows both alike
_CALLS = 250
_KEPT = 1_000  # customers of the cached case
_MANY = 100


def measure(url: str, customers: int) -> dict[str, Any]:
    chance = random.Random(3)  # noqa: S311  the same customers in every run

    def anyone() -> str:
        return customer_id(chance.randrange(customers))

    with redis.Redis.from_url(url) as raw, ProfileClient(url, namespace=NAMESPACE) as sdk:

        def plain(customer: str) -> None:
            msgpack.unpackb(raw.get(profile_key(NAMESPACE, customer)), strict_map_key=False,
                            unicode_errors="surrogateescape")  # fmt: skip

        raw_us: list[float] = []
        sdk_us: list[float] = []
        for _ in range(_ROUNDS):
            raw_us += _timed(plain, [anyone() for _ in range(_CALLS)])
            sdk_us += _timed(sdk.get, [anyone() for _ in range(_CALLS)])
        many_us = _timed(sdk.get_many, [[anyone() for _ in range(_MANY)] for _ in range(600)])
    with ProfileClient(url, namespace=NAMESPACE, cache_mb=64) as caching:
        kept = [customer_id(number) for number in range(min(_KEPT, customers))]
        for customer in kept:
            caching.get(customer)
        cached = []
        for _ in range(10):
            started = time.perf_counter()
            for customer in kept:
                caching.get(customer)
            cached.append((time.perf_counter() - started) / len(kept) * 1e6)
    return {
        "sdk_p50_us": _at(sdk_us, 0.5),
        "sdk_p99_us": _at(sdk_us, 0.99),
        "raw_p50_us": _at(raw_us, 0.5),
        "raw_p99_us": _at(raw_us, 0.99),
        "p50_ratio": round(_at(sdk_us, 0.5) / _at(raw_us, 0.5), 3),
        "p99_ratio": round(_at(sdk_us, 0.99) / _at(raw_us, 0.99), 3),
        "cached_us": round(statistics.median(cached), 2),
        "get_many_100_p50_ms": round(_at(many_us, 0.5) / 1000, 3),
        "get_many_100_p99_ms": round(_at(many_us, 0.99) / 1000, 3),
    }


def _timed(call: Callable[[Any], object], arguments: list[Any]) -> list[float]:
    took = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        took.append((time.perf_counter() - started) * 1e6)
    return took


def _at(values: list[float], share: float) -> float:
    return round(sorted(values)[int(share * len(values))], 1)
