"""Lines that already are limner events, checked by the same `decode` that the worker uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from streaming.events import Limits, decode
from streaming.events.types import Position, Record, Source
from streaming.intake.rows import Refused


class Ready(NamedTuple):
    """An event as it goes to Kafka, with the number of its (first) line."""

    line: int
    kind: Source
    customer_id: str
    value: bytes


class _Kind(msgspec.Struct):
    text: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    lines: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def kind_of(value: bytes) -> Source:
    """Which event a JSON object is meant to be, by the field that only one of the two has.

    Raises:
        Refused: neither a chat nor an order, or not JSON.
    """
    try:
        found = msgspec.json.decode(value, type=_Kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused("not JSON", "one JSON object a line was expected") from None
    if found.lines is not msgspec.UNSET:
        return "order"
    if found.text is not msgspec.UNSET:
        return "chat"
    raise Refused("neither chat nor order", "a chat has a text, an order has lines; use --kind for other formats")


def read_events(
    lines: Iterable[tuple[int, bytes]],
    kind: Source | None,
    limits: Limits,
    now_ms: int,
    refuse: Callable[[int, Refused], None],
) -> Iterator[Ready]:
    """The events that the worker will understand; `kind` None tells it by the fields.

    A line that holds one event keeps its bytes. One that holds several (an envelope) is taken
    apart, as a record on Kafka has one customer's key.
    """
    encode = msgspec.json.Encoder().encode
    for number, value in lines:
        try:
            source = kind or kind_of(value)
        except Refused as refused:
            refuse(number, refused)
            continue
        record = Record(Position("", 0, "", number), None, value, (), now_ms)
        events, dead = decode(record, source, limits, now_ms)
        for letter in dead:
            refuse(number, Refused(letter.reason, letter.detail))
        alone = len(events) + len(dead) == 1
        for event in events:
            yield Ready(number, source, event.customer_id, value if alone else encode(event))
