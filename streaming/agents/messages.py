"""Deltas and dead letters as Kafka records.

Both topics are compacted: a record with the same key and no value deletes one, which is how an erasure gets at
what the log holds of a customer. So every record has a key of its own, and what it belongs to in front:

    delta        customer_id \n hash of the delta
    dead letter  the key of its record \n topic/partition/epoch/offset[/item]; without a key the position alone

A delta that is published again after a crash has another processing time and so another key: were it the same, the
later one would take the earlier one's place in the log behind deltas of later offsets, and a replay's fence would
then drop it.
"""

from __future__ import annotations

import hashlib

from streaming.events.types import DeadLetter
from streaming.intake.async_send import Message
from streaming.profiles.delta import Delta

# A dead letter carries its record whole. One that leaves no room for our headers below Kafka's default
# limit of 1,048,588 bytes is cut, and says so: its position still leads to the original.
MAX_DEAD_LETTER_VALUE = 1_000_000


def delta_message(topic: str, delta: Delta) -> Message:
    return Message(topic, _delta_key(delta), delta.data, route=delta.customer_id.encode())


def without_delta(topic: str, delta: Delta) -> Message:
    """What takes a published delta out of the log again."""
    return Message(topic, _delta_key(delta), None, route=delta.customer_id.encode())


def _delta_key(delta: Delta) -> bytes:
    # 64 bits: two deltas of one customer share them once in 10^19
    return f"{delta.customer_id}\n{hashlib.blake2b(delta.data, digest_size=8).hexdigest()}".encode()


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
    place = f"{position.topic}/{position.partition}/{position.epoch}/{position.offset}"
    if letter.item is not None:
        about["item"] = letter.item
        place += f"/{letter.item}"
    if value is not None and len(value) > MAX_DEAD_LETTER_VALUE:
        about["cut-from-bytes"] = len(value)
        value = value[:MAX_DEAD_LETTER_VALUE]
    headers = [(f"limner-{name}", str(content).encode()) for name, content in about.items()]
    kept = [(name, content) for name, content in letter.record.headers if not name.startswith("limner-")]
    key = place.encode() if letter.record.key is None else letter.record.key + b"\n" + place.encode()
    # A record without a value deletes on a compacted topic: one that came without is kept as an empty one.
    return Message(topic, key, b"" if value is None else value, kept + headers)


def owner_key(key: bytes | None) -> bytes | None:
    """The key that a delta's customer, or a dead letter's record, had; None where there was none."""
    if key is None or b"\n" not in key:
        return None
    return key.rpartition(b"\n")[0]
