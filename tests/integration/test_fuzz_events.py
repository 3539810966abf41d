"""Events of every format, broken in every way that a seed can think of: nothing raises and nothing is lost."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgpack
import pytest

from streaming.events import REASONS, Chat, Limits, Order, Position, Record, Source, decode
from streaming.scrub import clean

NOW = 1_750_000_000_000
LIMITS = Limits(max_record_bytes=100_000, max_future_ms=300_000)
ROUNDS = 10_000
SEED = 20_101_201

Headers = tuple[tuple[str, bytes], ...]

CHAT = {
    "event_id": "e1",
    "customer_id": "c1",
    "ts": "2024-05-01T12:00:00Z",
    "text": "where is 我的 parcel? 😀 call +44 7700 900123 or mail a@example.com",
    "lang": "en",
    "role": "customer",
}
LINE = {"sku": "85123A", "description": "WHITE HANGING HEART", "quantity": 6, "unit_price": 2.55, "category": None}
ORDER = {
    "event_id": "e2",
    "customer_id": "c1",
    "ts": NOW - 1000,
    "order_id": "536365",
    "currency": "GBP",
    "lines": [LINE, LINE],
    "status": "placed",
}
TRACK = {
    "type": "track",
    "event": "Order Completed",
    "messageId": "m1",
    "userId": "c1",
    "timestamp": "2024-05-01T12:00:00Z",
    "properties": {
        "order_id": "o1",
        "currency": "USD",
        "products": [{"product_id": "p1", "name": "Mug", "price": 4.5, "quantity": 2}],
    },
}
WRAPPED = {
    "specversion": "1.0",
    "id": "e9",
    "source": "/",
    "type": "x",
    "subject": "c9",
    "time": "2024-05-01T12:00:00Z",
}
BINARY: Headers = tuple((f"ce_{name}", value.encode()) for name, value in WRAPPED.items())


class Format(NamedTuple):
    name: str
    source: Source
    content: Any
    headers: Headers
    items: Callable[[Any], Any]  # where the content has its items, if it is one of several


def _none(content: Any) -> Any:
    return None


def _events(content: Any) -> Any:
    """An envelope's items, as the format defines an envelope."""
    if isinstance(content, dict) and "event_id" not in content:
        return content.get("events")
    return None


FORMATS = [
    Format("chat", "chat", CHAT, (), _events),
    Format("order", "order", ORDER, (), _events),
    Format("track", "order", TRACK, (), _events),
    Format("chats", "chat", {"events": [CHAT, CHAT, CHAT]}, (), _events),
    Format("orders", "order", {"events": [ORDER, TRACK, ORDER]}, (), _events),
    Format("binary", "chat", {"text": "hello"}, BINARY, _events),
    Format(
        "structured", "chat", {**WRAPPED, "data": CHAT}, (("content-type", b"application/cloudevents+json"),), _none
    ),
    Format(
        "base64",
        "order",
        {**WRAPPED, "data_base64": base64.b64encode(json.dumps(ORDER).encode()).decode()},
        (("Content-Type", b"application/cloudevents+json"),),
        _none,
    ),
    Format(
        "batch",
        "order",
        [{**WRAPPED, "data": ORDER}, {**WRAPPED, "data": TRACK}],
        (("content-type", b"application/cloudevents-batch+json"),),
        lambda content: content,
    ),
]
MSGPACK: Headers = (("content-type", b"application/msgpack"),)

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    10**30,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "\x00",
    "\ud800",
    "{",
    "x" * 5_000,
    "2024-05-01T12:00:00",
    "9" * 400,
    [],
    [[]],
    {},
    {"events": []},
    {"": None},
]
TIMES: list[Any] = [NOW + 300_001, NOW * 2, NOW // 1000, 0, "2999-01-01T00:00:00Z", "2024-05-01T12:00:00", 10**30, 1.5]


def places(content: Any) -> list[tuple[Any, Any]]:
    """Each container within, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list) and len(found) < 500:
                waiting.append(container[key])
    return found


def change_structure(content: Any, rng: random.Random) -> Any:
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        found = places(content)
        if not found:
            break
        times = [place for place in found if place[1] in ("ts", "timestamp", "time")]
        if times and rng.random() < 0.1:
            container, key = rng.choice(times)
            container[key] = rng.choice(TIMES)
            continue
        container, key = rng.choice(found)
        kind = rng.randrange(7)
        if kind == 0:
            container[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == 1:
            del container[key]
        elif kind == 2:
            container[key] = copy.deepcopy(rng.choice([CHAT, ORDER, TRACK, {"events": [CHAT]}, WRAPPED]))
        elif kind == 3 and isinstance(container, list):
            container.extend([container[key]] * rng.choice([1, 1, 1, 5, 5, 1_200]))
        elif kind == 4:  # one part of it in another's place
            other, other_key = rng.choice(found)
            container[key] = copy.deepcopy(other.get(other_key) if isinstance(other, dict) else other[:2])
        elif kind == 5 and isinstance(container, dict):
            container[f"{key}{rng.choice(['', 'x', chr(0), '😀'])}"] = container.pop(key)
        else:
            deep: Any = copy.deepcopy(rng.choice(ODD))
            for _ in range(rng.choice([2, 50, 400])):
                deep = [deep] if rng.random() < 0.5 else {"x": deep}
            container[key] = deep
    return content


def change_bytes(value: bytes, rng: random.Random) -> bytes:
    data = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[to:to] = data[at:to]
        elif kind == 3:
            del data[at:to]
        elif kind == 4:
            data[at:at] = rng.choice(
                [
                    b"\xff",
                    b"\xed\xa0\x80",
                    rb"\ud800",
                    b"\xef\xbb\xbf",
                    b"\x00",
                    b"[" * 3_000,
                    b"NaN",
                    b"1e999",
                    b'"',
                    b"{}",
                ]
            )
        elif kind == 5:
            data[at:to] = rng.randbytes(min(to - at, 50))
        else:
            data *= rng.choice([2, 2, 2, 300 if len(data) < 1_000 else 3])
    return bytes(data)


def change_headers(headers: Headers, rng: random.Random) -> Headers:
    changed = list(headers)
    kind = rng.randrange(4)
    if kind == 0 and changed:
        del changed[rng.randrange(len(changed))]
    elif kind == 1 and changed:
        at = rng.randrange(len(changed))
        changed[at] = (changed[at][0], change_bytes(changed[at][1], rng)[:1_000])
    elif kind == 2:
        changed.append(
            rng.choice(
                [("content-type", b"application/msgpack"), ("ce_specversion", b"1.0"), ("", b""), ("CE_ID", b"\xff")]
            )
        )
    else:
        changed += rng.choice(FORMATS).headers
    return tuple(changed)


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def mutated(rng: random.Random) -> tuple[Format, bytes | None, Headers, bool]:
    """A record's source, value and headers, and whether the headers are still the format's own."""
    form = rng.choice(FORMATS)
    packed = rng.random() < 0.4 and form.headers in ((), BINARY)
    headers = form.headers + MSGPACK if packed else form.headers
    encode = partial(msgpack.packb, unicode_errors="surrogatepass") if packed else as_json
    value: bytes = encode(form.content)
    if rng.random() < 0.7:
        # msgpack has no such integers, Python not so many levels
        with contextlib.suppress(OverflowError, ValueError, RecursionError):
            value = encode(change_structure(form.content, rng))
    if rng.random() < 0.5:
        value = change_bytes(value, rng)
    own = rng.random() < 0.85
    return form, value if rng.random() < 0.995 else None, headers if own else change_headers(headers, rng), own


def items_within(form: Format, value: bytes | None, headers: Headers) -> int | None:
    """How many items a second, independent reading finds; None where it finds no envelope or can't read it."""
    if value is None or len(value) > LIMITS.max_record_bytes:
        return None
    try:
        content = msgpack.unpackb(value, strict_map_key=False) if headers[-1:] == MSGPACK else json.loads(value)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None
    items = form.items(content)
    return len(items) if isinstance(items, list) and 1 <= len(items) <= 1_000 else None


@pytest.mark.timeout(120)
def test_nothing_raises_and_nothing_is_lost() -> None:
    rng = random.Random(SEED)
    counts: Counter[str] = Counter()
    for offset in range(ROUNDS):
        form, value, headers, own_headers = mutated(rng)
        record = Record(Position("t", 0, "e", offset), rng.choice([None, b"c1", b"\xff"]), value, headers, NOW)
        events, dead = decode(record, form.source, LIMITS, NOW)

        assert len(events) + len(dead) >= 1
        for event in events:
            assert isinstance(event, Chat if form.source == "chat" else Order)
            assert event.event_id and event.customer_id and 0 < event.ts <= NOW + LIMITS.max_future_ms
            texts = [event.text] if isinstance(event, Chat) else [line.description for line in event.lines]
            for text in texts:
                assert len(clean(text, 1_000).encode()) <= 1_000
        for letter in dead:
            assert letter.record is record and letter.reason in REASONS and letter.detail
            assert letter.item is not None or letter.value == value
            assert len(letter.detail) < 400

        items = items_within(form, value, headers) if own_headers else None
        # Python's reader is laxer: what it can read may be refused as a whole, before items are told apart.
        if items is not None and not (len(dead) == 1 and dead[0].item is None and not events):
            assert len(events) + len(dead) == items
            counts["items accounted for"] += items
        counts["events"] += len(events)
        counts.update(letter.reason for letter in dead)
        counts.update(f"{form.name} decoded" for _ in events[:1])

    # The mutations reach every outcome of decoding, and every format survives some of them.
    for outcome in ("undecodable", "invalid", "too_large", "future", "events", "items accounted for"):
        assert counts[outcome] >= 20, counts
    for form in FORMATS:
        assert counts[f"{form.name} decoded"] >= 20, counts
