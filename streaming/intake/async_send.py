"""Records into Kafka without blocking the event loop: a thread waits for acknowledgements."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from streaming.errors import BrokerUnavailable
from streaming.intake.producer import producer
from streaming.intake.route import partition_of
from streaming.settings import Settings

# How long a caller is kept waiting for Kafka: beyond a leader election of a healthy cluster,
# below the 10 s after which common clients and proxies give up themselves.
DELIVERY_S = 5.0

# /ready is asked every few seconds by probes that wait one.
METADATA_S = 0.8


class Message(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None
    route: bytes = b""
    """What decides the partition instead of the key; empty: the key does."""
    partition: int = -1
    """The partition itself, where a record must follow another; -1: `route` or key decides."""


class Place(NamedTuple):
    """Where a message stands in Kafka."""

    topic: str
    partition: int
    offset: int | None
    """None when Kafka has it from an earlier attempt whose acknowledgement was lost: it does not say where, then."""


class AsyncSender:
    """One producer and its thread. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        # Reported failed means not sent later: librdkafka gives up on a message when we do.
        # Its callers wait for their few messages, so gathering more than a millisecond's worth gains nothing.
        self._producer = producer(settings, message_timeout_ms=int(DELIVERY_S * 1000), linger_ms=1)
        self._partitions: dict[str, int] = {}  # of topics that messages are routed to
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka-acknowledgements", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._stopped.is_set():
            self._producer.poll(0.1)

    async def send(self, messages: Sequence[Message]) -> list[Place]:
        """Return once every message is acknowledged by all in-sync replicas: where each stands.

        Raises:
            BrokerUnavailable: some were not; which is unknown to the caller, who sends all again
                (the merge drops repeats by event id).
        """
        if not messages:
            return []
        for topic in {message.topic for message in messages if message.route} - self._partitions.keys():
            self._partitions[topic] = await asyncio.to_thread(self._count_partitions, topic)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str | None] = loop.create_future()
        places: list[Place | None] = [None] * len(messages)
        outstanding = len(messages)
        fault: str | None = None

        def finish() -> None:
            if not done.done():  # the caller may have gone
                done.set_result(fault)

        # in the polling thread, and in it alone
        def delivered(index: int, error: KafkaError | None, message: Any) -> None:
            nonlocal outstanding, fault
            if error is not None:
                fault = error.str()
            else:
                offset = message.offset()
                places[index] = Place(message.topic(), message.partition(), offset if offset >= 0 else None)
            outstanding -= 1
            if outstanding == 0:
                loop.call_soon_threadsafe(finish)

        for index, message in enumerate(messages):
            self._produce(message, partial(delivered, index))
        failed = await done
        if failed is not None:
            raise BrokerUnavailable(
                f"Kafka at {self._kafka} did not take the records within {DELIVERY_S:g} s: {failed}"
            )
        return [place for place in places if place is not None]  # all: each was delivered

    def _produce(self, message: Message, delivered: Callable[[KafkaError | None, Any], None]) -> None:
        try:
            self._producer.produce(
                message.topic,
                message.value,
                message.key,
                self._partition(message),
                headers=message.headers,
                on_delivery=delivered,
            )
        except BufferError:
            raise BrokerUnavailable(f"Kafka at {self._kafka} is behind: the queue to it is full") from None
        except KafkaException as error:  # such as a message too large for the producer
            raise BrokerUnavailable(f"Kafka refuses a record: {error.args[0].str()}") from None

    def _partition(self, message: Message) -> int:
        if message.route:
            return partition_of(message.route, self._partitions[message.topic])
        return message.partition  # librdkafka too calls it -1 when the key decides

    def _count_partitions(self, topic: str) -> int:
        try:
            found = self._producer.list_topics(topic, timeout=DELIVERY_S).topics[topic]
        except KafkaException as error:
            raise BrokerUnavailable(f"Kafka at {self._kafka} does not answer: {error.args[0].str()}") from None
        if not found.partitions:
            raise BrokerUnavailable(f"Kafka at {self._kafka} has no topic {topic}: run `limner topics`")
        return len(found.partitions)

    async def check(self) -> None:
        """Ask the broker for its metadata.

        Raises:
            BrokerUnavailable
        """
        try:
            await asyncio.to_thread(self._producer.list_topics, timeout=METADATA_S)
        except KafkaException as error:
            raise BrokerUnavailable(f"Kafka at {self._kafka} does not answer: {error.args[0].str()}") from None

    def close(self) -> None:
        """Give what is on its way the time it was promised."""
        self._stopped.set()
        self._thread.join()
        self._producer.flush(DELIVERY_S)
