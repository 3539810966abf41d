"""Deltas and dead letters to Kafka, acknowledged by all in-sync replicas before the call returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import confluent_kafka

from streaming.errors import BrokerUnavailable
from streaming.events.types import DeadLetter
from streaming.profiles.delta import Delta

# A dead letter carries its record whole. One that leaves no room for our headers below Kafka's default
# limit of 1,048,588 bytes is cut, and says so: its position still leads to the original.
MAX_DEAD_LETTER_VALUE = 1_000_000
# Waiting longer than this for acknowledgements counts as the broker being away; the caller tries again.
DELIVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def delta_message(topic: str, delta: Delta) -> Message:
    return Message(topic, delta.customer_id.encode(), delta.data, [])


def dead_letter_message(topic: str, letter: DeadLetter, now_ms: int) -> Message:
    """The record's own bytes and headers, with `limner-*` headers for reason and position."""
    position = letter.record.position
    value = letter.value
    about = {
        "reason": letter.reason,
        "detail": letter.detail,
        "topic": position.topic,
        "partition": position.partition,
        "epoch": position.epoch,
        "offset": position.offset,
        "timestamp": letter.record.timestamp,
        "at": now_ms,
    }
    if letter.item is not None:
        about["item"] = letter.item
    if value is not None and len(value) > MAX_DEAD_LETTER_VALUE:
        about["cut-from-bytes"] = len(value)
        value = value[:MAX_DEAD_LETTER_VALUE]
    headers = [(f"limner-{name}", str(content).encode()) for name, content in about.items()]
    kept = [(name, content) for name, content in letter.record.headers if not name.startswith("limner-")]
    return Message(topic, letter.record.key, value, kept + headers)


def publish(producer: confluent_kafka.Producer, messages: Iterable[Message]) -> None:
    """Send all and wait. Blocks: call it in a thread. Calling it again repeats messages, which readers bear.

    Raises:
        BrokerUnavailable: not all were acknowledged in time.
    """
    failures: list[str] = []
    sent = acknowledged = 0

    def delivered(error: Any, _: Any) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if error is not None:
            failures.append(error.str())

    for message in messages:
        while True:
            try:
                producer.produce(
                    message.topic, message.value, message.key, headers=message.headers or None, on_delivery=delivered
                )
            except BufferError:  # librdkafka's queue is full: let deliveries drain it
                if producer.poll(DELIVERY_S) == 0:
                    raise BrokerUnavailable("Kafka does not take records: the producer's queue stays full") from None
            else:
                sent += 1
                break
    producer.flush(DELIVERY_S)
    if acknowledged < sent:
        failures.append(f"{sent - acknowledged} of {sent} records not acknowledged within {DELIVERY_S:.0f} s")
    if failures:
        raise BrokerUnavailable(f"Kafka did not take all records: {failures[0]}")
