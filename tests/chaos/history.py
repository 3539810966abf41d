"""Events with known ground truth, sent at a pace; afterwards every one is accounted for against the oracle."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka
import redis

from streaming import kafka_admin
from streaming.embedded.processes import Child, free_port
from streaming.embedded.readings import get
from streaming.events import Position, Record, Source, decode
from streaming.intake.producer import producer
from streaming.profiles import schema
from streaming.profiles.delta import Scored
from streaming.profiles.keys import profile_key
from streaming.settings import Settings
from tests import oracle
from tests.fakes import DAY_MS, HashScorer
from tests.reading import scored

CUSTOMERS = 500
SCORER = HashScorer()


def fresh_settings(kafka: str, redis_url: str, **more: Any) -> Settings:
    """Topics, group and keys of their own, so that tests may share servers."""
    run = uuid.uuid4().hex[:8]
    return Settings(
        kafka=kafka, redis=redis_url, group=f"g-{run}", namespace=f"n{run}", chat_topic=f"chat-{run}",
        order_topic=f"order-{run}", delta_topic=f"deltas-{run}", dead_letter_topic=f"dead-{run}",
        control_topic=f"controls-{run}", **more,
    )  # fmt: skip


def environment(settings: Settings, **more: str) -> dict[str, str]:
    names = ("kafka", "redis", "group", "namespace", "chat_topic", "order_topic", "delta_topic", "dead_letter_topic",
             "control_topic", "session_timeout_s")  # fmt: skip
    return {f"LIMNER_{name.upper()}": str(getattr(settings, name)) for name in names} | more


def start_worker(environment: dict[str, str]) -> Child:
    """A worker with the exact scorer, once it has its partitions."""
    port = free_port()
    worker = Child(
        "worker",
        [sys.executable, "-m", "tests.chaos.hash_worker"],
        env={**environment, "LIMNER_METRICS_PORT": str(port), "PYTHONPATH": str(Path.cwd())},
        in_own_folder=False,
    )
    worker.wait_ready(lambda: get(port, "/ready")[0] == 200, timeout_s=60)
    return worker


def events(source: Source, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """About one in fifty is a producer's repeat of one of its last few."""
    chance = random.Random(f"{source} {seed}")
    now = time.time_ns() // 1_000_000
    recent: list[dict[str, Any]] = []
    for number in range(count):
        if recent and chance.random() < 0.02:
            yield chance.choice(recent)
            continue
        event: dict[str, Any] = {
            "event_id": f"{source}-{number}",
            "customer_id": f"customer-{chance.randrange(CUSTOMERS)}",
            "ts": now - chance.randrange(200 * DAY_MS),
        }
        if source == "chat":
            event["text"] = f"message {chance.randrange(300)}"
        else:
            event |= {
                "order_id": str(number),
                "currency": "GBP",
                "status": chance.choice(["placed"] * 8 + ["cancelled", "returned"]),
                "lines": [
                    {"sku": f"sku-{k}", "description": f"thing {k}", "quantity": chance.randrange(1, 9),
                     "unit_price": chance.randrange(2_000) / 100}
                    for k in chance.sample(range(60), chance.randrange(1, 8))
                ],
            }  # fmt: skip
        recent = [*recent[-4:], event]
        yield event


@dataclass
class Sending:
    """Sends in threads of their own, orders and chats each evenly over `seconds`. What then stands in the
    topics, all of it and nothing else, is the truth that profiles are held against."""

    settings: Settings
    orders: int
    chats: int
    seconds: float

    def __post_init__(self) -> None:
        self._failures: list[str] = []
        kafka_admin.ensure_topics(self.settings)
        self._threads = [
            threading.Thread(target=self._send, args=("order", self.settings.order_topic, self.orders)),
            threading.Thread(target=self._send, args=("chat", self.settings.chat_topic, self.chats)),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, source: Source, topic: str, count: int) -> None:
        client = producer(self.settings)
        started = time.monotonic()

        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                self._failures.append(str(error))

        for number, event in enumerate(events(source, count, seed=1)):
            client.produce(topic, json.dumps(event).encode(), event["customer_id"].encode(), on_delivery=delivered)
            client.poll(0)
            time.sleep(max(0.0, started + self.seconds * number / count - time.monotonic()))
        client.flush(60)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        assert not self._failures

    def expected(self) -> Expected:
        return expected(self.settings, {"order": self.orders, "chat": self.chats})


@dataclass(frozen=True)
class Expected:
    """What must come of the records that stand in the source topics."""

    profiles: dict[str, dict[str, Any]]  # the oracle's
    events: int
    dead: int


def expected(settings: Settings, sent: dict[Source, int]) -> Expected:
    topics: dict[Source, str] = {"order": settings.order_topic, "chat": settings.chat_topic}
    epochs = kafka_admin.topic_epochs(settings, topics.values())
    limits = settings.limits
    now = time.time_ns() // 1_000_000
    items: list[Scored] = []
    dead = 0
    for source, topic in topics.items():
        records = read_all(settings, topic, epochs[topic])
        assert len(records) == sent[source]
        items += scored(records, source, SCORER, limits, now)
        dead += sum(len(decode(record, source, limits, now)[1]) for record in records)
    return Expected(oracle.profiles(items, SCORER.label_refs, SCORER.version), len(items), dead)


def _place(record: Record) -> tuple[int, int]:
    return record.position.partition, record.position.offset


def read_all(settings: Settings, topic: str, epoch: str = "") -> list[Record]:
    """Every record of a topic: until a second after the end of each partition nothing more has come
    (the embedded broker may report an end too soon)."""
    client = confluent_kafka.Consumer(
        {"bootstrap.servers": settings.kafka, "group.id": "reader",
         "auto.offset.reset": "earliest", "enable.auto.commit": False, "fetch.message.max.bytes": 4_000_000}
    )  # fmt: skip
    partitions = client.list_topics(topic, timeout=10).topics[topic].partitions
    client.assign([confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING) for p in partitions])
    records: list[Record] = []
    deadline = time.monotonic() + 60
    quiet = 0.0
    while quiet < 1.0:
        assert time.monotonic() < deadline, f"{topic} can't be read to its end"
        started = time.monotonic()
        messages = [message for message in client.consume(5_000, timeout=0.5) if message.error() is None]
        quiet = 0.0 if messages else quiet + time.monotonic() - started
        for message in messages:
            position = Position(topic, message.partition(), epoch, message.offset())
            headers = tuple(message.headers() or ())
            records.append(Record(position, message.key(), message.value(), headers, message.timestamp()[1]))
    client.close()
    return sorted(records, key=_place)


def wait_until_settled(settings: Settings, wanted: Expected, timeout_s: float) -> None:
    """Until every profile's fence has reached the last record of each customer, which is what users wait for."""
    fences = {customer: profile["f"] for customer, profile in wanted.profiles.items()}
    deadline = time.monotonic() + timeout_s
    with redis.Redis.from_url(settings.redis) as client:
        while True:
            stored = client.mget([profile_key(settings.namespace, customer) for customer in fences])
            behind = sum(
                it is None or schema.unpack(it)["f"] != fence for it, fence in zip(stored, fences.values(), strict=True)
            )
            if not behind:
                return
            assert time.monotonic() < deadline, f"{behind} of {len(fences)} customers' events are not merged"
            time.sleep(0.2)


def assert_stored(settings: Settings, wanted: Expected) -> None:
    """Every profile is as wanted, byte for byte, and there is no other."""
    with redis.Redis.from_url(settings.redis) as client:
        keys = set(client.scan_iter(f"{settings.namespace}:*:p", count=10_000))
        assert sorted(keys) == sorted(profile_key(settings.namespace, customer) for customer in wanted.profiles)
        for customer, profile in wanted.profiles.items():
            found = schema.unfold(client.get(profile_key(settings.namespace, customer)) or b"")
            same = schema.canonical(found) == schema.canonical(profile)
            assert same, f"{customer}: {oracle.difference(found, profile)}"


def deliveries(settings: Settings) -> int:
    """How often an event was processed, repeats included: entries of all published deltas."""
    return sum(len(schema.unpack(record.value or b"")["e"]) for record in read_all(settings, settings.delta_topic))
