"""From a record's bytes to events: every record and every item of one ends as an event or a dead letter."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from streaming.errors import InvalidEvent
from streaming.events import cloudevents, plain, segment
from streaming.events.types import DeadLetter, Event, Limits, Record, Source
from streaming.events.wire import NO_ATTRIBUTES, Attributes, Codec, Items, reader

# Some producers (.NET, PowerShell) write it before JSON; RFC 8259 lets a reader pass over it.
_BOM = b"\xef\xbb\xbf"

# A Segment call by its `type`, as it stands in the bytes.
_TRACK: dict[Codec, bytes] = {"json": b'"track"', "msgpack": b"\xa5track"}


class _Shape(msgspec.Struct, frozen=True):
    """What tells the formats apart, and the two events."""

    event_id: Raw | UnsetType = UNSET
    events: Raw | UnsetType = UNSET
    type: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    lines: Raw | UnsetType = UNSET


class _Envelope(msgspec.Struct, frozen=True):
    events: Items


_read_shape = reader(_Shape)
_read_envelope = reader(_Envelope)


def decode(record: Record, source: Source, limits: Limits, now_ms: int) -> tuple[list[Event], list[DeadLetter]]:
    """The events that a record holds, in its order, and dead letters for what can't become one.

    A record's value is one of

    - an event in limner's format (`plain`), JSON or, by content-type header, msgpack
    - a `track` call of the Segment spec (`segment`), likewise
    - a CloudEvent around one of these (`cloudevents`): binary mode, structured mode, or a batch
    - an envelope `{"events": [...]}` of at most `wire.MAX_ITEMS` of the first two, likewise

    Args:
        source: which topic it came from; the other's events are invalid here.
        now_ms: the clock, epoch milliseconds.

    Never raises, whatever the bytes; each item of an envelope or batch is one event or one dead letter,
    with the item's bytes as they came, but for half a surrogate pair in JSON: the pair's missing half
    makes the whole envelope unreadable, so it is replaced before the items are told apart.
    """
    try:
        if record.value is None:
            raise InvalidEvent("undecodable", "null value: a tombstone means nothing on a topic of events")
        if len(record.value) > limits.max_record_bytes:
            raise InvalidEvent("too_large", f"{len(record.value)} bytes: Expected at most {limits.max_record_bytes}")
        form, codec, around = cloudevents.form_of(record.headers)
        body = record.value.removeprefix(_BOM) if codec == "json" else record.value
        if form == "batch":
            items = cloudevents.unbatch(body)
        elif form == "structured":
            return [_wrapped(body, source, limits, now_ms)], []
        else:
            shape = _read_shape(body, codec)
            if not _is_envelope(shape):
                return [_event(shape, body, codec, around, source, limits, now_ms)], []
            items = _read_envelope(body, codec).events
    except InvalidEvent as fault:
        return [], [DeadLetter(record, fault.reason, fault.detail, record.value)]

    events: list[Event] = []
    dead: list[DeadLetter] = []
    for index, item in enumerate(items):
        try:
            if form == "batch":
                events.append(_wrapped(item, source, limits, now_ms))
            else:
                # The attributes of a CloudEvent around an envelope are not its items': one id for
                # all of them would make all but the first a repeat.
                shape = _read_shape(item, codec)
                events.append(_event(shape, item, codec, NO_ATTRIBUTES, source, limits, now_ms))
        except InvalidEvent as fault:
            dead.append(DeadLetter(record, fault.reason, fault.detail, bytes(item), index))
    return events, dead


def _is_envelope(shape: _Shape) -> bool:
    """An event of limner's own format may have a field `events`, which is ignored like any other unknown one."""
    return shape.events is not UNSET and shape.event_id is UNSET


def _wrapped(body: bytes | Raw, source: Source, limits: Limits, now_ms: int) -> Event:
    data, codec, around = cloudevents.unwrap(body)
    return _event(_read_shape(data, codec), data, codec, around, source, limits, now_ms)


def _event(
    shape: _Shape,
    body: bytes | Raw,
    codec: Codec,
    around: Attributes,
    source: Source,
    limits: Limits,
    now_ms: int,
) -> Event:
    """One event in limner's format or Segment's. Raises InvalidEvent."""
    if _is_envelope(shape):
        raise InvalidEvent("invalid", "events: Expected an event, got an envelope within another or a CloudEvent")
    if shape.event_id is UNSET and shape.type is not UNSET and bytes(shape.type) == _TRACK[codec]:
        if source == "chat":
            raise InvalidEvent("invalid", "type: Expected a chat, got an order's track call on the chat topic")
        return segment.order(body, codec, around, limits, now_ms)
    if source == "chat":
        if shape.text is UNSET and shape.lines is not UNSET:
            raise InvalidEvent("invalid", "lines: Expected a chat, got an order on the chat topic")
        return plain.chat(body, codec, around, limits, now_ms)
    if shape.lines is UNSET and shape.text is not UNSET:
        raise InvalidEvent("invalid", "text: Expected an order, got a chat on the order topic")
    return plain.order(body, codec, around, limits, now_ms)
