"""The Faust application of a worker: one agent a topic, concurrency 1, whole batches acknowledged in order."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import redis.asyncio
from faust.exceptions import ConsumerNotStarted

from streaming import logs, metrics
from streaming.access.kafka import faust_credentials
from streaming.agents import health, take
from streaming.agents.settle import DependencyGone, Settler
from streaming.agents.transport import App
from streaming.controls.agent import Controller
from streaming.controls.erasure import Eraser
from streaming.controls.store import ControlStore
from streaming.events.types import Position, Record, Source
from streaming.intake.async_send import AsyncSender
from streaming.pipeline import Outcome, Scorer
from streaming.profiles.store import ProfileStore
from streaming.settings import Settings

log = logs.get("limner.worker")
T = TypeVar("T")

# Events that one partition may have waiting in memory; records are up to 1 MB, batches a few hundred.
_BUFFER = 2_048

# Batches of one source that are processed and not yet acknowledged: one waits for Kafka and one for Redis while the
# next is processed. More would only be repeated after a crash.
_UNSETTLED = 2

# Controls acknowledged together: an erasure takes seconds, and a crash repeats those before it.
_CONTROLS = 16


def create(settings: Settings, scorer: Scorer, epochs: Mapping[str, str]) -> App:
    """Wire topics, agents and store. `epochs` names the incarnation of each source topic (see `Position`)."""
    app = App(
        settings.group,
        broker=[f"aiokafka://{address.strip()}" for address in settings.kafka.split(",")],
        broker_credentials=faust_credentials(settings),
        datadir=settings.cache_dir / "faust",  # it makes empty folders there, by default in the current one
        web_enabled=False,
        autodiscover=False,
        topic_disable_leader=True,
        topic_allow_declare=False,  # `limner topics` makes them; a worker that made them would hide a wrong address
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=min(1.0, settings.session_timeout_s / 3),
        broker_commit_interval=0.5,
        broker_max_poll_interval=max(300.0, 2 * settings.store_patience_s),
        stream_buffer_maxsize=_BUFFER,
        stream_wait_empty=False,
        consumer_max_fetch_size=max(settings.max_record_bytes * 2, 4 * 1_048_576),
        worker_redirect_stdouts=False,
        producer_acks=-1,
    )
    client = redis.asyncio.from_url(
        settings.redis, socket_timeout=settings.store_timeout_s, socket_connect_timeout=settings.store_timeout_s
    )
    store = ProfileStore(
        client, settings.namespace, analytics=settings.consent["analytics"], retention_ms=settings.retention_ms
    )
    sender = AsyncSender(settings)
    controller = Controller(Eraser(settings, ControlStore(client, settings.namespace), sender))

    def agent(source: Source, topic: str, most: int, within_ms: float) -> None:
        mine = Settler(source, settings, scorer, store, sender)

        async def consume(stream: Any) -> None:
            unsettled: deque[asyncio.Task[None]] = deque()
            async for events in take.batches(stream, most, within_ms / 1000):
                records = [record_of(event.message, epochs[topic]) for event in events]
                outcome = await _or_end(mine.process(records))
                before = unsettled[-1] if unsettled else None
                unsettled.append(asyncio.create_task(_or_end(_settle(mine, records, outcome, events, before))))
                if len(unsettled) > _UNSETTLED:
                    await unsettled.popleft()

        app.agent(
            app.topic(topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"),
            name=f"limner.{source}",
            concurrency=1,
        )(consume)

    async def control(stream: Any) -> None:
        async for events in take.batches(stream, _CONTROLS, 0):
            records = [record_of(event.message, epochs[settings.control_topic]) for event in events]
            await _or_end(controller.settle(records))
            for event in events:
                event.ack()

    app.agent(
        app.topic(
            settings.control_topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        ),
        name="limner.control",
        concurrency=1,
    )(control)
    agent("order", settings.order_topic, settings.order_batch, settings.order_within_ms)
    agent("chat", settings.chat_topic, settings.chat_batch, settings.chat_within_ms)

    measured: set[Any] = set()

    def assignment() -> set[Any]:
        try:
            found: set[Any] = app.consumer.assignment()
        except ConsumerNotStarted:
            return set()
        return found

    async def measure_lag() -> None:
        assigned = assignment()
        for tp in measured - assigned:
            metrics.LAG.remove(tp.topic, tp.partition)
            measured.discard(tp)
        for tp in assigned:
            highwater = app.consumer.highwater(tp)
            if highwater is not None:
                done = app.consumer._committed_offset.get(tp) or 0
                metrics.LAG.labels(tp.topic, tp.partition).set(max(0, highwater - done))
                measured.add(tp)

    app.timer(1.0)(measure_lag)

    def missing() -> str:
        return "" if app.started and assignment() else "no partitions assigned yet"

    port = health.serve(settings.metrics_port, missing)
    log.info("worker starts", metrics=f"http://127.0.0.1:{port}/metrics", model=scorer.version, group=settings.group)
    return app


async def _settle(
    mine: Settler, records: list[Record], outcome: Outcome, events: list[Any], before: asyncio.Task[None] | None
) -> None:
    """Publish, then, once the batch before is settled, merge and acknowledge: merges stay in order."""
    await mine.publish(outcome)
    if before:
        await before
    await mine.merge(records, outcome)
    for event in events:
        event.ack()


async def _or_end(step: Coroutine[Any, Any, T]) -> T:
    """Nothing of a batch is acknowledged before it is settled, so whoever starts the worker again repeats it.

    An exception that left the agent would be worse than the end: Faust would go on behind the batch and lose it.
    """
    try:
        return await step
    except DependencyGone as error:
        log.critical("ending the worker", error=str(error))
    except Exception as error:  # a fault of ours
        log.critical("ending the worker", error=type(error).__name__, exc_info=error)
    os._exit(1)


def record_of(message: Any, epoch: str) -> Record:
    """A Faust message as the core knows it."""
    headers = message.headers or ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return Record(
        Position(message.topic, message.partition, epoch, message.offset),
        message.key,
        message.value,
        tuple((name, content or b"") for name, content in pairs),
        int(message.timestamp * 1000),
    )
