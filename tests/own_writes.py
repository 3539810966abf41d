"""Read your writes: each event sent over HTTP, then read at once with the token that the answer gave."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serving import chat, order


@dataclass
class Reads:
    stale: list[str] = field(default_factory=list)
    """Event ids that the profile read with their token did not hold."""
    seconds: list[float] = field(default_factory=list)
    """Of each read, in no order."""

    def quantile_ms(self, q: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(q * len(self.seconds)))] * 1000


def read_own_writes(client: httpx.Client, writes: int, *, customers: int = 50, callers: int = 4) -> Reads:
    """`writes` events, chats and orders, each followed at once by a read of its customer with its token.

    A profile counts the events that it holds; a read is stale when it counts fewer than this customer's callers
    were told of. Each of `callers` threads has customers of its own, so that it knows their counts.
    """
    reads = Reads()
    run = f"{time.time_ns():x}"

    def caller(number: int) -> None:
        chance = random.Random(number)
        sent: dict[str, dict[str, int]] = {}
        for write in range(number, writes, callers):
            customer = f"{run}-{number}-{chance.randrange(max(1, customers // callers))}"
            make, source = (chat, "chat") if chance.random() < 0.3 else (order, "order")
            event: dict[str, Any] = make(event_id=f"{run}-{write}", customer_id=customer, ts=int(time.time() * 1000))
            answer = client.post("/v1/events", json=event)
            assert answer.status_code == 202, answer.text
            counts = sent.setdefault(customer, {"chat": 0, "order": 0})
            counts[source] += 1
            started = time.perf_counter()
            query = {"at_least": answer.json()["token"], "wait_ms": 10_000}
            read = client.get(f"/v1/profiles/{customer}", params=query)
            reads.seconds.append(time.perf_counter() - started)
            assert read.status_code == 200, read.text
            if read.json()["events"].get(source, 0) < counts[source]:
                reads.stale.append(event["event_id"])

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))
    return reads
