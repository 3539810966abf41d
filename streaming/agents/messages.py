"""Deltas and dead letters as Kafka records."""

from __future__ import annotations

from streaming.events.types import DeadLetter
from streaming.intake.async_send import Message
from streaming.profiles.delta import Delta

# A dead letter carries its record whole. One that leaves no room for our headers below Kafka's default
# limit of 1,048,588 bytes is cut, and says so: its position still leads to the original.
MAX_DEAD_LETTER_VALUE = 1_000_000


def delta_message(topic: str, delta: Delta) -> Message:
    return Message(topic, delta.customer_id.encode(), delta.data)


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
