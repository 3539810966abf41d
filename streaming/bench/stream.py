"""One worker's events/s beside a raw loop over the same records, and how soon events are visible at 70 % load.

The raw loop is aiokafka's `getmany` and the same pipelined merge script on deltas made beforehand, one a record:
no decoding, no scrubbing, no model, no deltas published, no offsets committed. It is what the stream could not
possibly beat with these clients. Orders are the demo's real ones, many times over for as many customers; chats
are its real messages, each made different, so that none is answered from the cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import confluent_kafka
import msgspec
import redis
import redis.asyncio
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from streaming import kafka_admin
from streaming import settings as settings_module
from streaming.access.kafka import librdkafka_options, python_options
from streaming.demo.feed import events as demo_events
from streaming.embedded.broker import Broker
from streaming.embedded.processes import Child, free_port
from streaming.embedded.readings import get
from streaming.embedded.store import Store
from streaming.events.types import Source
from streaming.intake.producer import producer
from streaming.profiles import schema
from streaming.profiles.delta import Delta
from streaming.profiles.keys import profile_key
from streaming.profiles.store import ProfileStore
from streaming.settings import Settings

ORDERS, CHATS = 30_000, 1_500  # a round's backlog: several seconds of work each
ROUNDS = 3  # stream and raw loop in turns, so that a drifting machine slows both alike
LOAD = 0.7
# Beside the broker, the store and this generator on two cores, 70 % of what a backlog drains at is close to all
# there is; this pace is below that on any machine.
STEADY_PER_S = 1_500
FRESH_S = 20.0  # of paced sending
SAMPLES_PER_S = 20.0  # events whose profile is watched until it holds them


@dataclass(frozen=True, slots=True)
class Sent:
    customer_id: str
    value: bytes


class Events:
    """The demo's events again and again, each time of other customers."""

    def __init__(self) -> None:
        self._demo: dict[Source, list[dict[str, Any]]] = {"order": [], "chat": []}
        for event in demo_events():
            self._demo["order" if "lines" in event else "chat"].append(event)
        self._used: dict[Source, int] = {"order": 0, "chat": 0}

    def next(self, source: Source, count: int) -> list[Sent]:
        demo, first = self._demo[source], self._used[source]
        self._used[source] += count
        return [self._one(source, *divmod(number, len(demo))) for number in range(first, first + count)]

    def all_orders_once(self) -> list[Sent]:
        return self.next("order", len(self._demo["order"]))

    def _one(self, source: Source, again: int, index: int) -> Sent:
        event = dict(self._demo[source][index])
        event["event_id"] += f"/{again}"
        event["customer_id"] += f"/{again}"
        if source == "chat":
            event["text"] += f" ({again}.{index})"
        return Sent(event["customer_id"], msgspec.json.encode(event))


@dataclass(frozen=True, slots=True)
class Bench:
    settings: Settings
    client: confluent_kafka.Producer
    metrics_port: int

    def send(self, source: Source, events: Sequence[Sent]) -> None:
        for event in events:
            self.client.produce(self.settings.topic_of(source), event.value, event.customer_id.encode())
            self.client.poll(0)
        self.client.flush(60)

    def merged(self, source: Source) -> int:
        # one line of the page: parsing all of it would compete with what is measured
        line = f'limner_events_total{{source="{source}"}} '
        found = re.search(re.escape(line) + r"(\S+)", get(self.metrics_port, "/metrics")[1])
        return int(float(found[1])) if found else 0

    def wait_merged(self, source: Source, total: int) -> list[tuple[float, int]]:
        """(time, events merged so far) twice a second, until `total`: a worker that is asked more often does less."""
        seen: list[tuple[float, int]] = []
        while not seen or seen[-1][1] < total:
            seen.append((time.perf_counter(), self.merged(source)))
            time.sleep(0.5)
        return seen

    def stream_rate(self, worker: Child, source: Source, events: Sequence[Sent]) -> float:
        """Events/s between a tenth and nine tenths of a backlog."""
        before = self.merged(source)
        os.kill(worker.pid, signal.SIGSTOP)  # the backlog's sending is not what is measured
        self.send(source, events)
        os.kill(worker.pid, signal.SIGCONT)
        seen = self.wait_merged(source, before + len(events))
        middle = [it for it in seen if 0.1 <= (it[1] - before) / len(events) <= 0.9]
        first, last = (middle[0], middle[-1]) if len(middle) > 1 else (seen[0], seen[-1])
        return (last[1] - first[1]) / (last[0] - first[0])

    def visible_after_ms(self, source: Source, events: Sequence[Sent], per_s: float) -> list[float]:
        """Send at a steady pace; for a sample, the time from Kafka's record time to seeing it in Redis."""
        watch = _Watch(self.settings)
        every = max(1, round(per_s / SAMPLES_PER_S))
        started = time.perf_counter()
        for number, event in enumerate(events):
            time.sleep(max(0.0, started + number / per_s - time.perf_counter()))
            delivered = watch.delivered if number % every == 0 else None
            self.client.produce(
                self.settings.topic_of(source), event.value, event.customer_id.encode(), on_delivery=delivered
            )
            self.client.poll(0)
        self.client.flush(60)
        return watch.end()


class _Watch:
    """Looks at the profiles of sampled events every five milliseconds, in a thread, until they hold the event."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._epochs = kafka_admin.topic_epochs(settings, [settings.order_topic, settings.chat_topic])
        self._waiting: list[tuple[bytes, str, int, int]] = []
        self._found: list[float] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def delivered(self, error: Any, message: Any) -> None:
        if error is None:
            fence = f"{message.topic()}/{message.partition()}/{self._epochs[message.topic()]}"
            key = profile_key(self._settings.namespace, message.key().decode())
            self._waiting.append((key, fence, message.offset(), message.timestamp()[1]))

    def end(self) -> list[float]:
        self._ending.set()
        self._thread.join()
        return self._found

    def _look(self) -> None:
        with redis.Redis.from_url(self._settings.redis) as client:
            while self._waiting or not self._ending.is_set():
                waiting = list(self._waiting)
                profiles = client.mget([key for key, *_ in waiting]) if waiting else []
                now = time.time() * 1000
                for it, profile in zip(waiting, profiles, strict=True):
                    _, fence, offset, timestamp = it
                    if profile is not None and schema.unpack(profile)["f"].get(fence, -1) >= offset:
                        self._found.append(now - timestamp)
                        self._waiting.remove(it)
                time.sleep(0.005)


class Published:
    """Reads what the worker published, each time from where it stopped. Between, it has no consumer open: one
    would go on fetching beside what is measured."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._next = dict.fromkeys(range(settings.partitions), 0)

    def single_deltas(self, topic: str) -> dict[tuple[int, int], Delta]:
        """(partition, offset) of a source record -> a delta of that record alone; of all published since the last."""
        client = confluent_kafka.Consumer(
            {**librdkafka_options(self._settings), "group.id": "bench-deltas", "enable.auto.commit": False}
        )
        deltas = self._settings.delta_topic
        client.assign([confluent_kafka.TopicPartition(deltas, p, offset) for p, offset in self._next.items()])
        result: dict[tuple[int, int], Delta] = {}
        while messages := client.consume(5_000, timeout=2.0):
            for message in messages:
                self._next[message.partition()] = message.offset() + 1
                content = schema.unpack(message.value())
                of_topic, partition, _ = content["f"].rsplit("/", 2)
                if of_topic == topic:
                    for entry in content["e"]:
                        data = schema.pack({**content, "e": [entry]})
                        result[int(partition), entry[0]] = Delta.from_bytes(data)
        client.close()
        return result


async def raw_rate(settings: Settings, topic: str, deltas: dict[tuple[int, int], Delta]) -> float:
    store_client = redis.asyncio.from_url(settings.redis)
    store = ProfileStore(store_client, f"raw{time.monotonic_ns()}")
    consumer = AIOKafkaConsumer(**python_options(settings), auto_offset_reset="earliest")
    await consumer.start()
    partitions = [TopicPartition(topic, p) for p in range(settings.partitions)]
    consumer.assign(partitions)
    for tp in partitions:
        consumer.seek(tp, min((offset for partition, offset in deltas if partition == tp.partition), default=0))
    done, started = 0, time.perf_counter()
    while done < len(deltas):
        batches = await consumer.getmany(timeout_ms=1000, max_records=settings.order_batch)
        for records in batches.values():
            await store.merge([deltas[record.partition, record.offset] for record in records])
            done += len(records)
    rate = done / (time.perf_counter() - started)
    await consumer.stop()
    await store_client.aclose()
    return rate


def start_worker(settings: Settings, port: int) -> Child:
    names = ("kafka", "redis", "group", "chat_topic", "order_topic", "delta_topic", "dead_letter_topic")
    environment = {f"LIMNER_{name.upper()}": str(getattr(settings, name)) for name in names}
    environment |= {
        "LIMNER_PACKS": json.dumps(settings.packs),
        "LIMNER_METRICS_PORT": str(port),
        "LIMNER_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
    }
    worker = Child("worker", [sys.executable, "-m", "streaming.cli", "worker"], env=environment, in_own_folder=False)
    worker.wait_ready(lambda: get(port, "/ready")[0] == 200, timeout_s=120)
    return worker


def _orders(bench: Bench, worker: Child, events: Events) -> dict[str, float]:
    published = Published(bench.settings)
    warm = events.all_orders_once()  # a shop's descriptions repeat: a worker sees each new one once
    bench.send("order", warm)
    bench.wait_merged("order", len(warm))
    published.single_deltas(bench.settings.order_topic)
    stream, raw = [], []
    for _ in range(ROUNDS):
        stream.append(bench.stream_rate(worker, "order", events.next("order", ORDERS)))
        deltas = published.single_deltas(bench.settings.order_topic)
        raw.append(asyncio.run(raw_rate(bench.settings, bench.settings.order_topic, deltas)))
    return {
        "orders_per_s": round(statistics.median(stream)),
        "raw_orders_per_s": round(statistics.median(raw)),
        "orders_ratio": round(statistics.median(s / r for s, r in zip(stream, raw, strict=True)), 3),
    }


def _freshness(bench: Bench, source: Source, events: Events, per_s: float, name: str) -> dict[str, float]:
    found_ms = bench.visible_after_ms(source, events.next(source, round(per_s * FRESH_S)), per_s)
    cuts = statistics.quantiles(found_ms, n=100)
    return {
        f"{name}_p50_ms": round(cuts[49], 1),
        f"{name}_p99_ms": round(cuts[98], 1),
        f"{name}_samples": len(found_ms),
    }


def run() -> dict[str, Any]:
    """Over servers of its own; over the broker of LIMNER_KAFKA where that is set, in topics made for the run."""
    run_id = f"bench-{time.time_ns() // 1_000_000_000}"
    with ExitStack() as servers:
        store = servers.enter_context(Store.start())
        found: dict[str, object] = {"redis": store.url, "packs": ["ecommerce", "finance"], "group": run_id}
        told = settings_module.load().model_fields_set
        if "kafka" not in told:
            found["kafka"] = servers.enter_context(Broker.start()).bootstrap
        names = ("chat_topic", "order_topic", "delta_topic", "dead_letter_topic")
        # long enough to be stopped while a backlog is sent
        settings = settings_module.load(**found, session_timeout_s=15.0, **{n: f"{run_id}-{n}" for n in names})
        kafka_admin.ensure_topics(settings)
        port = free_port()
        bench, events = Bench(settings, producer(settings), port), Events()
        with start_worker(settings, port) as worker:
            figures: dict[str, Any] = _orders(bench, worker, events)
            figures |= _freshness(bench, "order", events, STEADY_PER_S, f"orders_fresh_at_{STEADY_PER_S}")
            figures |= _freshness(bench, "order", events, LOAD * figures["orders_per_s"], "orders_fresh")
            chats_per_s = bench.stream_rate(worker, "chat", events.next("chat", CHATS))
            figures["chats_per_s"] = round(chats_per_s, 1)
            figures |= _freshness(bench, "chat", events, LOAD * chats_per_s, "chats_fresh")
    return figures | {"load": LOAD, "broker": "LIMNER_KAFKA" if "kafka" in told else "embedded"}
