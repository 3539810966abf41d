"""The body of POST /v1/events, checked event by event as the worker would."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import msgspec

from streaming.errors import InvalidEvent
from streaming.events import Event, Limits, Position, Record, Source, decode
from streaming.events.wire import Codec
from streaming.intake.async_send import Message
from streaming.lookup.problems import decode_body
from streaming.lookup.shapes import EventResult
from streaming.settings import Settings

# One acknowledgement of Kafka covers them all; at 4 KB each they fill a body.
MAX_EVENTS = 1_000

# Kafka counts key, headers and framing to a record's size: an id has up to 512 bytes, framing some 70.
RECORD_OVERHEAD = 600


class _Body(msgspec.Struct):
    events: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)] | None = None


class _Peek(msgspec.Struct):
    kind: Any = None
    event_id: Any = None
    text: Any = None
    lines: Any = None


_PEEK: dict[Codec, Callable[[bytes], _Peek]] = {
    "json": msgspec.json.Decoder(_Peek).decode,
    "msgpack": msgspec.msgpack.Decoder(_Peek).decode,
}

# What a record says of its bytes; `decode` takes those that say nothing for JSON.
_HEADERS: dict[Codec, list[tuple[str, bytes]] | None] = {
    "json": None,
    "msgpack": [("content-type", b"application/msgpack")],
}


class Taken(NamedTuple):
    """What becomes of each event, in order; of the good ones, the customer and what goes to Kafka: their bytes
    as they came."""

    results: list[EventResult]
    customers: list[str]
    messages: list[Message]


def take(body: bytes, codec: Codec, settings: Settings) -> Taken:
    """
    Raises:
        ProblemError: the body as a whole is not one event or {"events": [...]}.
    """
    items = decode_body(body, _Body, codec).events
    limits = replace(settings.limits, max_record_bytes=settings.max_record_bytes - RECORD_OVERHEAD)
    now_ms = time.time_ns() // 1_000_000
    results: list[EventResult] = []
    customers: list[str] = []
    messages: list[Message] = []
    for index, item in enumerate([body] if items is None else map(bytes, items)):
        event_id = None
        try:
            peek = _peek(item, codec)
            event_id = peek.event_id if isinstance(peek.event_id, str) else None
            source = _source(peek)
            topic = settings.topic_of(source)
            event = _event(item, codec, source, topic, limits, now_ms)
        except InvalidEvent as error:
            results.append(EventResult(index, "rejected", event_id=event_id, reason=error.reason, detail=error.detail))
        else:
            results.append(EventResult(index, "accepted", event_id=event.event_id))
            customers.append(event.customer_id)
            messages.append(Message(topic, event.customer_id.encode(), item, _HEADERS[codec]))
    return Taken(results, customers, messages)


def _peek(item: bytes, codec: Codec) -> _Peek:
    try:
        return _PEEK[codec](item)
    except msgspec.ValidationError:
        raise InvalidEvent("invalid", "Expected an object, the event") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Peek(kind="chat")  # `decode` says what is wrong with it, whichever it is


def _source(peek: _Peek) -> Source:
    if peek.kind is None and (peek.text is None) == (peek.lines is None):
        raise InvalidEvent("invalid", "kind: Expected one of chat, order, or one of the fields `text` and `lines`")
    match peek.kind or ("chat" if peek.lines is None else "order"):
        case "chat":
            return "chat"
        case "order":
            return "order"
    raise InvalidEvent("invalid", "kind: Expected one of chat, order")


def _event(item: bytes, codec: Codec, source: Source, topic: str, limits: Limits, now_ms: int) -> Event:
    headers = tuple(_HEADERS[codec] or ())
    record = Record(Position(topic, -1, "", -1), None, item, headers, now_ms)  # it stands nowhere yet
    events, refused = decode(record, source, limits, now_ms)
    for letter in refused:
        raise InvalidEvent(letter.reason, letter.detail)
    if len(events) != 1:  # an envelope's events can be of several customers; a record has one key
        raise InvalidEvent("invalid", f"Expected one event, got an envelope of {len(events)}")
    return events[0]
