"""The HTTP service as a process, and what tests send to it and find in it."""

from __future__ import annotations

import ssl
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from confluent_kafka.admin import AdminClient, NewTopic

from streaming.embedded.broker import Broker
from streaming.embedded.processes import Child, free_port
from tests.stored import profile

DAY = 86_400_000
HALF_LIFE = 7 * DAY


SERVE = (sys.executable, "-m", "streaming.cli", "serve")


@contextmanager
def running(
    argv: Sequence[str] = SERVE, verify: ssl.SSLContext | None = None, **settings: object
) -> Iterator[tuple[httpx.Client, Child]]:
    """The service, ready, and a client of it: over TLS with `verify`."""
    port = free_port()
    base = f"{'https' if verify else 'http'}://127.0.0.1:{port}"
    env = {f"LIMNER_{name.upper()}": str(value) for name, value in {"http_port": port, **settings}.items()}
    with (
        Child("service", argv, env=env) as process,
        httpx.Client(base_url=base, timeout=20, verify=verify or True) as client,
    ):

        def answers() -> bool:
            try:
                return client.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        process.wait_ready(answers)
        yield client, process


def fresh_topics(broker: Broker) -> dict[str, str]:
    """Topics that nobody else uses, as settings."""
    tag = uuid.uuid4().hex[:8]
    kinds = ("chat", "order", "delta", "dead_letter", "control")
    names = {f"{kind}_topic": f"{kind}-{tag}" for kind in kinds}
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for future in admin.create_topics([NewTopic(name, 4, 1) for name in names.values()]).values():
        future.result(20)
    return names


def stored(customer_id: str, now: int) -> bytes:
    labels = {"手机": [2, now, 3, "m1", ["e1", "e2"]]}
    feelings = {"positive": [3, now, 1, "m1", ["e2"]], "negative": [1, now, 1, "m1", ["e1"]]}
    chat = {"n": 3, "t": now, "l": {"interests": [HALF_LIFE, labels], "sentiment": [DAY, feelings]}}
    orders = {"n": 1, "c": 0, "r": 0, "a": now, "z": now, "q": 2, "k": 1, "m": {"GBP": [125_000, 0, 0]},
              "p": {"S1": [1, 2, now, "\x1b]0;x\x07red cup"]}}  # fmt: skip
    sources = {"chat": chat, "order": {"n": 1, "t": now}}
    return profile(customer_id, now, sources, o=orders)


def problem(response: httpx.Response, status: int, name: str, field: str | None = None) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:limner:problem:{name}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body.get("field") == field
    return body


def chat(**fields: Any) -> dict[str, Any]:
    return {"event_id": "e1", "customer_id": "c1", "ts": "2026-01-02T03:04:05Z", "text": "好的 hi"} | fields


def order(**fields: Any) -> dict[str, Any]:
    lines = [{"sku": "s", "description": "cup", "quantity": 2, "unit_price": 1.5}]
    return {"event_id": "o1", "customer_id": "c1", "ts": 1_767_000_000_000, "order_id": "O", "currency": "GBP",
            "lines": lines} | fields  # fmt: skip
