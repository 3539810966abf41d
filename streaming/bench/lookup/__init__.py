"""Look-ups: the SDK beside a plain GET, the HTTP service on one core, and Feast's feature server at the same work."""

from __future__ import annotations

import time
from typing import Any

import redis

from streaming.bench.lookup import feast, fill, sdk, service
from streaming.embedded.broker import Broker
from streaming.embedded.store import Store

CUSTOMERS = 1_000_000
SMALL = 1_000


def run(customers: int = CUSTOMERS, minutes: float = 0, feast_python: str = "") -> dict[str, Any]:
    """`customers` in an embedded store; `minutes` at 2,000 look-ups/s to see whether p99 stays; `feast_python`: the
    interpreter of an environment with feast[redis], which limner doesn't install."""
    found: dict[str, Any] = {"customers": customers}
    with Store.start() as store, Broker.start() as broker:
        with redis.Redis.from_url(store.url) as client:
            started = time.perf_counter()
            small = {}
            for size in (SMALL, customers):
                found["profile_bytes"] = fill.fill(store.url, size, time.time_ns() // 1_000_000)
                if size == SMALL:
                    with service.serving(store.url, broker.bootstrap) as port:
                        small = _paced(port, size)
            found["fill_s"] = round(time.perf_counter() - started, 1)
            found["store_mb"] = round(client.info("memory")["used_memory"] / 2**20)
        found |= sdk.measure(store.url, customers)
        with service.serving(store.url, broker.bootstrap) as port:
            single = service.singles(customers)
            found |= service.figures(port, single, {ids: service.batches(customers, ids) for ids in service.IDS})
            large = _paced(port, customers)
            found |= large
            if minutes:
                found["http_p99_ms_by_minute"] = [
                    service.paced(port, single, service.PACE_PER_S, 60)[1] for _ in range(round(minutes))
                ]
        key = "http_p99_ms_at_2000"
        found[f"{key}_by_customers"] = {str(SMALL): small[key], str(customers): large[key]}
    found["feast"] = feast.measure(feast_python) if feast_python else "not run: no environment was named"
    return found


def _paced(port: int, customers: int) -> dict[str, float]:
    p50, p99 = service.paced(port, service.singles(customers), service.PACE_PER_S)
    return {"http_p50_ms_at_2000": p50, "http_p99_ms_at_2000": p99}
