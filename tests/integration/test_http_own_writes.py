"""Read your writes through Kafka, a real worker and Redis."""

from __future__ import annotations

import os

import pytest

from streaming import kafka_admin
from streaming.embedded.broker import Broker
from tests.chaos import history
from tests.own_writes import read_own_writes
from tests.serving import chat, problem, running

# OWN_WRITES=10000 runs the long form.
WRITES = int(os.environ.get("OWN_WRITES", "200"))


@pytest.mark.timeout(900)
def test_each_event_is_in_the_profile_that_is_read_with_its_token(broker: Broker, redis_url: str) -> None:
    settings = history.fresh_settings(broker.bootstrap, redis_url)
    kafka_admin.ensure_topics(settings)
    with (
        history.start_worker(history.environment(settings)) as worker,
        running(
            kafka=settings.kafka, redis=settings.redis, namespace=settings.namespace,
            chat_topic=settings.chat_topic, order_topic=settings.order_topic,
        ) as (client, _),
    ):  # fmt: skip
        reads = read_own_writes(client, WRITES)
        assert len(reads.seconds) == WRITES
        assert reads.stale == []
        print(f"{WRITES} reads with tokens: p50 {reads.quantile_ms(0.5):.1f} ms, p99 {reads.quantile_ms(0.99):.1f} ms")

        # a repeat, which the profile drops, is one that it holds
        event = chat(event_id="twice", customer_id="r")
        for _ in range(2):
            token = client.post("/v1/events", json=event).json()["token"]
            body = client.get("/v1/profiles/r", params={"at_least": token, "wait_ms": 10_000}).json()
            assert body["events"] == {"chat": 1}

        # many events of one customer under one token
        many = {"events": [chat(event_id=f"n{n}", customer_id="m") for n in range(100)]}
        token = client.post("/v1/events", json=many).json()["token"]
        body = client.get("/v1/profiles/m", params={"at_least": token, "wait_ms": 10_000}).json()
        assert body["events"] == {"chat": 100}

        # without a worker nothing comes, and the caller is told so
        worker.kill()
        token = client.post("/v1/events", json=chat(event_id="late", customer_id="r")).json()["token"]
        answer = client.get("/v1/profiles/r", params={"at_least": token, "wait_ms": 300})
        problem(answer, 504, "not-yet-visible", "at_least")
