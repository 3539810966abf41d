"""Records into Kafka without blocking the event loop: a thread waits for acknowledgements."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from streaming.errors import BrokerUnavailable
from streaming.intake.producer import producer
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


class AsyncSender:
    """One producer and its thread. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        # Reported failed means not sent later: librdkafka gives up on a message when we do.
        # Its callers wait for their few messages, so gathering more than a millisecond's worth gains nothing.
        self._producer = producer(settings, message_timeout_ms=int(DELIVERY_S * 1000), linger_ms=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka-acknowledgements", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._stopped.is_set():
            self._producer.poll(0.1)

    async def send(self, messages: Sequence[Message]) -> None:
        """Return once every message is acknowledged by all in-sync replicas.

        Raises:
            BrokerUnavailable: some were not; which is unknown to the caller, who sends all again
                (the merge drops repeats by event id).
        """
        if not messages:
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str | None] = loop.create_future()
        outstanding = len(messages)
        fault: str | None = None

        def finish() -> None:
            if not done.done():  # the caller may have gone
                done.set_result(fault)

        def delivered(error: KafkaError | None, _: Any) -> None:  # in the polling thread, and in it alone
            nonlocal outstanding, fault
            if error is not None:
                fault = error.str()
            outstanding -= 1
            if outstanding == 0:
                loop.call_soon_threadsafe(finish)

        for message in messages:
            try:
                self._producer.produce(
                    message.topic, message.value, message.key, headers=message.headers, on_delivery=delivered
                )
            except BufferError:
                raise BrokerUnavailable(f"Kafka at {self._kafka} is behind: the queue to it is full") from None
            except KafkaException as error:  # such as a message too large for the producer
                raise BrokerUnavailable(f"Kafka refuses a record: {error.args[0].str()}") from None
        failed = await done
        if failed is not None:
            raise BrokerUnavailable(
                f"Kafka at {self._kafka} did not take the records within {DELIVERY_S:g} s: {failed}"
            )

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
