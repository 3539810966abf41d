"""Events to Kafka, each acknowledged or reported."""

from __future__ import annotations

import time

from confluent_kafka import KafkaError, KafkaException, Message

from streaming.errors import BrokerUnavailable
from streaming.intake.interrupts import WholeSteps
from streaming.intake.producer import producer
from streaming.settings import Settings

# How long one wait for room or for acknowledgements may keep Ctrl-C waiting.
POLL_S = 0.2
# Beyond the producer's own timeout, so that its word on each message comes first.
FLUSH_GRACE_S = 5.0


class Sender:
    """Sends and counts. `acknowledged` events are on Kafka; those that `failed` are not, for the reason `error`."""

    def __init__(self, settings: Settings, steps: WholeSteps | None = None) -> None:
        """`steps`: under its watch a Ctrl-C loses no report."""
        self._steps = steps or WholeSteps()
        self.acknowledged = 0
        self.failed = 0
        self.error = ""
        self._settings = settings
        self._producer = producer(settings)

    def send(self, topic: str, customer_id: str, value: bytes) -> None:
        """Hand one event over; waits while the queue is full.

        Raises:
            BrokerUnavailable: Kafka did not take this event, or one before it.
        """
        while not self._taken(topic, customer_id, value):
            self._raise_failed()
        self._raise_failed()

    def flush(self) -> None:
        """Wait for the last acknowledgement.

        Raises:
            BrokerUnavailable: Kafka did not take all events.
        """
        until = time.monotonic() + self._settings.store_patience_s + FLUSH_GRACE_S
        while self._flushing() and time.monotonic() < until:
            pass
        self.failed += len(self._producer)
        self._raise_failed()

    def _taken(self, topic: str, customer_id: str, value: bytes) -> bool:
        with self._steps:
            try:
                self._producer.produce(topic, value, customer_id.encode(), on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(POLL_S)
                return False
            except KafkaException as error:
                self.failed += 1
                self.error = self.error or error.args[0].str()
            self._producer.poll(0)
            return True

    def _flushing(self) -> bool:
        with self._steps:
            left: int = self._producer.flush(POLL_S)
            return left > 0

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed += 1
            self.error = self.error or error.str()

    def _raise_failed(self) -> None:
        if self.failed:
            raise BrokerUnavailable(
                f"Kafka at {self._settings.kafka} did not take {self.failed:,} events ({self.error or 'no answer'}), "
                f"{self.acknowledged:,} are there: look at the broker, then send the file again"
            )
