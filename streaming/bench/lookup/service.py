"""The HTTP service on one core, the generator and the store on the others."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from streaming.bench.lookup.fill import NAMESPACE, customer_id
from streaming.bench.lookup.generator import Load, measure, request
from streaming.embedded.processes import Child, free_port
from streaming.embedded.readings import get

# The generator's open connections: as many as a small fleet of callers keeps.
CONNECTIONS = 16
PACE_PER_S = 2_000
SECONDS = 10.0
# What Feast publishes its latencies at: one caller who asks again when answered.
ALONE_S = 6.0
IDS = (1, 50, 100)
_DISTINCT = 5_000


@contextmanager
def serving(redis_url: str, kafka: str) -> Iterator[int]:
    """`limner serve` on the first core; its port."""
    port = free_port()
    environment = {
        "LIMNER_REDIS": redis_url, "LIMNER_KAFKA": kafka, "LIMNER_NAMESPACE": NAMESPACE, "LIMNER_HTTP_PORT": str(port),
        "LIMNER_LOG_LEVEL": "warning",
    }  # fmt: skip
    with pinned_child("lookup service", ["-m", "streaming.cli", "serve"], environment, port):
        yield port


@contextmanager
def pinned_child(
    name: str, arguments: list[str], environment: dict[str, str], port: int, python: str = "", path: str = "/health"
) -> Iterator[Child]:
    """A Python server on the first core alone, once it answers."""
    with Child(name, [python or sys.executable, *arguments], env=environment) as child:
        child.wait_ready(lambda: get(port, path)[0] == HTTPStatus.OK, 90)
        for thread in Path(f"/proc/{child.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {min(os.sched_getaffinity(0))})
        yield child


def other_cores() -> frozenset[int]:
    """All but the server's; all there are where there is one."""
    cores = os.sched_getaffinity(0)
    return frozenset(cores - {min(cores)}) or frozenset(cores)


def singles(customers: int) -> list[bytes]:
    chance = random.Random(5)  # noqa: S311
    return [request("GET", f"/v1/profiles/{customer_id(chance.randrange(customers))}") for _ in range(_DISTINCT)]


def batches(customers: int, ids: int) -> list[bytes]:
    chance = random.Random(6)  # noqa: S311
    if ids == 1:
        return singles(customers)[:500]
    bodies = [{"ids": [customer_id(chance.randrange(customers)) for _ in range(ids)]} for _ in range(500)]
    return [request("POST", "/v1/profiles:batch", msgspec.json.encode(body)) for body in bodies]


def figures(port: int, single: list[bytes], by_ids: dict[int, list[bytes]]) -> dict[str, Any]:
    """The same figures of any service, by the requests that ask it for the same work."""
    cores = other_cores()
    measure(Load(port, single, CONNECTIONS, 3.0), cores)  # warm
    full = measure(Load(port, single, CONNECTIONS, SECONDS), cores)
    alone = {ids: measure(Load(port, requests, 1, ALONE_S), cores) for ids, requests in by_ids.items()}
    refused = full.refused + sum(answers.refused for answers in alone.values())
    return {
        "http_rps": round(full.per_s),
        "http_ids_p50_ms": {str(ids): answers.percentile_ms(0.5) for ids, answers in alone.items()},
        "http_ids_p99_ms": {str(ids): answers.percentile_ms(0.99) for ids, answers in alone.items()},
        "http_refused": refused,
    }


def paced(port: int, single: list[bytes], per_s: float, seconds: float = SECONDS) -> tuple[float, float]:
    """p50 and p99 in ms at a steady pace."""
    answers = measure(Load(port, single, 4 * CONNECTIONS, seconds, per_s), other_cores())
    return answers.percentile_ms(0.5), answers.percentile_ms(0.99)
