"""limner's own format, envelopes, limits: what becomes an event, what a dead letter, and what that says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgpack
import msgspec
import pytest

from streaming.events import REASONS, Chat, DeadLetter, Event, Limits, Line, Order, Position, Record, Source, decode
from streaming.events.types import Id

NOW = 1_750_000_000_000
LIMITS = Limits(max_record_bytes=1 << 20, max_future_ms=300_000)
MSGPACK = (("content-type", b"application/msgpack"),)
SECRET = "Zbigniew"  # stands in fields; no detail may repeat it

CHAT = {"event_id": "e1", "customer_id": "c1", "ts": NOW - 1000, "text": "where is my parcel?"}
LINE = {"sku": "85123A", "description": "WHITE HANGING HEART", "quantity": 6, "unit_price": 2.55}
ORDER = {
    "event_id": "e2",
    "customer_id": "c1",
    "ts": NOW - 1000,
    "order_id": "536365",
    "currency": "GBP",
    "lines": [LINE],
}


def record(value: bytes | None, headers: tuple[tuple[str, bytes], ...] = (), key: bytes | None = None) -> Record:
    return Record(Position("events", 0, "epoch", 7), key, value, headers, NOW)


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


def one(
    content: object, source: Source = "chat", headers: tuple[tuple[str, bytes], ...] = (), limits: Limits = LIMITS
) -> Event:
    events, dead = decode(record(as_json(content), headers), source, limits, NOW)
    assert dead == [] and len(events) == 1
    return events[0]


def refused(
    value: bytes | None,
    source: Source = "chat",
    headers: tuple[tuple[str, bytes], ...] = (),
    limits: Limits = LIMITS,
) -> DeadLetter:
    """The dead letter of a record of which nothing becomes an event."""
    sent = record(value, headers)
    events, dead = decode(sent, source, limits, NOW)
    assert events == [] and len(dead) == 1
    letter = dead[0]
    assert letter.record is sent and letter.reason in REASONS and letter.detail
    assert SECRET not in letter.detail
    if letter.item is None:
        assert letter.value == value
    return letter


def changed(content: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {**content, **changes}


def without(content: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != field}


def test_a_chat_and_an_order_arrive_whole() -> None:
    assert one(changed(CHAT, lang="en", channel="web", role="agent")) == Chat(
        event_id="e1",
        customer_id="c1",
        ts=NOW - 1000,
        text="where is my parcel?",
        lang="en",
        channel="web",
        role="agent",
    )
    line = Line(sku="85123A", description="WHITE HANGING HEART", quantity=6.0, unit_price=2.55, category="home")
    assert one(changed(ORDER, status="returned", lines=[changed(LINE, category="home")]), "order") == Order(
        event_id="e2",
        customer_id="c1",
        ts=NOW - 1000,
        order_id="536365",
        currency="GBP",
        lines=[line],
        status="returned",
    )


@pytest.mark.parametrize("name", ["content-type", "Content-Type", "CONTENT-TYPE"])
@pytest.mark.parametrize("media_type", [b"application/msgpack", b"application/x-msgpack", b"Application/MsgPack; v=1"])
def test_msgpack_by_header(name: str, media_type: bytes) -> None:
    for content, source in ((CHAT, "chat"), (ORDER, "order")):
        events, dead = decode(record(msgpack.packb(content), ((name, media_type),)), source, LIMITS, NOW)  # type: ignore[arg-type]
        assert dead == [] and events == [one(content, source)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        changed(CHAT, loyalty={"tier": "gold"}, events=[1, 2], type="track", lines=None),
        changed(CHAT, role="customer", lang=None),
    ],
)
def test_unknown_fields_are_ignored(content: dict[str, Any]) -> None:
    assert one(content) == one(CHAT)


@pytest.mark.parametrize(
    "value",
    [
        b"\xef\xbb\xbf" + as_json(CHAT),  # a byte order mark
        b'{"event_id":"first",' + as_json(CHAT)[1:],  # of a key that comes twice the last counts
        json.dumps(CHAT, indent=2).encode(),
    ],
    ids=["BOM", "duplicate key", "white space"],
)
def test_json_as_some_producers_write_it(value: bytes) -> None:
    assert decode(record(value), "chat", LIMITS, NOW) == ([one(CHAT)], [])


def test_half_an_emoji_is_replaced_and_the_rest_stays() -> None:
    """JavaScript's `text.slice(0, n)` within an emoji leaves a lone surrogate, which its JSON writes as an escape."""
    texts = {
        rb'"cut \ud83d"': "cut �",
        rb'"\udc00 x"': "� x",
        rb'"\ud83d\ude00 \ud83d!"': "😀 �!",
        rb'"C:\\ud83d \ud83d"': r"C:\ud83d �",
        rb'"\ud83d\ud83d\ude00"': "�😀",
    }
    for text, expected in texts.items():
        value = as_json(without(CHAT, "text"))[:-1] + b', "text": ' + text + b"}"
        events, dead = decode(record(value), "chat", LIMITS, NOW)
        assert dead == []
        assert [event.text for event in events if isinstance(event, Chat)] == [expected]


@pytest.mark.parametrize(
    ("ts", "expected"),
    [
        ("2024-05-01T12:00:00Z", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("2024-05-01T12:00:00.123Z", datetime(2024, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)),
        ("2024-05-01T20:00:00+08:00", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("2024-05-01t07:30:00-04:30", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("2024-05-01 12:00:00Z", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("1990-01-01T00:00:00Z", datetime(1990, 1, 1, tzinfo=UTC)),
        (1_714_564_800_000, datetime(2024, 5, 1, 12, tzinfo=UTC)),
        (NOW + 300_000, None),  # as far ahead as may be
    ],
)
def test_times(ts: str | int, expected: datetime | None) -> None:
    assert one(changed(CHAT, ts=ts)).ts == (NOW + 300_000 if expected is None else round(expected.timestamp() * 1000))


def test_msgpack_timestamp() -> None:
    value = msgpack.packb(changed(CHAT, ts=datetime(2024, 5, 1, 12, tzinfo=UTC)), datetime=True)
    events, _ = decode(record(value, MSGPACK), "chat", LIMITS, NOW)
    assert [event.ts for event in events] == [1_714_564_800_000]


@pytest.mark.parametrize(
    ("ts", "reason", "says"),
    [
        ("2024-05-01T12:00:00", "invalid", "ts: Expected `datetime` with a timezone"),
        ("2024-05-01", "invalid", "ts: Invalid RFC3339"),
        (SECRET, "invalid", "ts: Invalid RFC3339"),
        (1_714_564_800, "invalid", "seconds"),
        (0, "invalid", "seconds"),
        (-1, "invalid", "before 1990"),
        (10**11, "invalid", "before 1990"),
        ("1989-12-31T23:59:59Z", "invalid", "before 1990"),
        ("0001-01-01T00:00:00+14:00", "invalid", "before 1990"),
        (NOW + 300_001, "future", "300000 ms ahead"),
        (NOW * 1000, "future", "ts"),  # microseconds
        (10**400, "future", "ts"),
        ("9999-12-31T23:59:59-14:00", "future", "ts"),
        (1.75e12, "invalid", "got `float`"),
        (True, "invalid", "got `bool`"),
        (None, "invalid", "`ts`"),
        ({}, "invalid", "got `object`"),
    ],
)
def test_times_refused(ts: object, reason: str, says: str) -> None:
    letter = refused(as_json(changed(CHAT, ts=ts)))
    assert letter.reason == reason and says in letter.detail


@pytest.mark.parametrize("field", ["event_id", "customer_id", "ts", "text"])
def test_a_missing_field_is_named(field: str) -> None:
    letter = refused(as_json(without(CHAT, field)))
    assert letter.reason == "invalid" and f"`{field}`" in letter.detail


@pytest.mark.parametrize("field", ["event_id", "customer_id", "order_id", "currency", "lines"])
def test_a_missing_field_of_an_order_is_named(field: str) -> None:
    letter = refused(as_json(without(ORDER, field)), "order")
    assert letter.reason == "invalid" and f"`{field}`" in letter.detail


BAD_IDS = ["", "x" * 129, f"{SECRET}\x00", f"{SECRET}\n", f"{SECRET}\x7f", f"{{{SECRET}}}", f"{SECRET}\ud83d", 5, ["a"]]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("field", ["event_id", "customer_id", "order_id"])
def test_bad_ids(field: str, bad: object) -> None:
    letter = refused(as_json(changed(ORDER, **{field: bad})), "order")
    assert letter.reason == "invalid" and letter.detail.startswith(f"{field}: ")


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("field", ["event_id", "customer_id"])
def test_bad_ids_of_a_chat(field: str, bad: object) -> None:
    letter = refused(as_json(changed(CHAT, **{field: bad})))
    assert letter.reason == "invalid" and letter.detail.startswith(f"{field}: ")


def test_a_newline_at_the_end_of_an_id() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("c1\n", Id)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_sku(bad: object) -> None:
    letter = refused(as_json(changed(ORDER, lines=[LINE, changed(LINE, sku=bad)])), "order")
    assert letter.reason == "invalid" and "sku: Expected" in letter.detail


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"currency": "gbp"}, "currency: "),
        ({"currency": "GBP\n"}, "currency: "),
        ({"currency": SECRET}, "currency: "),
        ({"status": SECRET}, "status: Expected one of placed, cancelled, returned"),
        ({"status": "x' - at `$.y`"}, "status: Expected one of placed, cancelled, returned"),
        ({"lines": SECRET}, "lines: Expected `array`"),
        ({"lines": [SECRET]}, "lines[0]: Expected `object`"),
        ({"lines": [changed(LINE, quantity=0)]}, "lines[0].quantity: Expected `float` > 0"),
        ({"lines": [changed(LINE, quantity=-1)]}, "lines[0].quantity: "),
        ({"lines": [changed(LINE, quantity="6")]}, "lines[0].quantity: Expected `float`, got `str`"),
        ({"lines": [changed(LINE, quantity=1e7)]}, "lines[0].quantity: "),
        ({"lines": [changed(LINE, unit_price=-0.01)]}, "lines[0].unit_price: Expected `float` >= 0"),
        ({"lines": [changed(LINE, unit_price=10**400)]}, "lines[0].unit_price: "),
        ({"lines": [LINE, without(LINE, "description")]}, "lines[1]: Object missing required field `description`"),
        ({"lines": [LINE] * 5_001}, "lines: Expected `array` of length <= 5000"),
    ],
)
def test_bad_orders(changes: dict[str, Any], says: str) -> None:
    letter = refused(as_json(changed(ORDER, **changes)), "order")
    assert letter.reason == "invalid" and letter.detail.startswith(says)


def test_bad_role() -> None:
    assert refused(as_json(changed(CHAT, role=SECRET))).detail == "role: Expected one of customer, agent"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["quantity", "unit_price"])
def test_numbers_that_are_none(number: float, field: str) -> None:
    order = changed(ORDER, lines=[changed(LINE, **{field: number})])
    assert refused(json.dumps(order).encode(), "order").reason == "undecodable"  # NaN is not JSON
    assert refused(msgpack.packb(order), "order", MSGPACK).reason == "invalid"


@pytest.mark.parametrize("source", ["chat", "order"])
def test_an_event_on_the_other_topic(source: Source) -> None:
    letter = refused(as_json(ORDER if source == "chat" else CHAT), source)
    assert letter.reason == "invalid" and f"on the {source} topic" in letter.detail


DEEP = 100_000


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"{",
        b"\x00",
        b"NaN",
        SECRET.encode(),
        as_json(CHAT)[:-1],
        as_json(CHAT) + b"}",
        as_json(CHAT) + as_json(CHAT),
        b"[" * DEEP + b"]" * DEEP,
        b'{"x":' * DEEP + b"1" + b"}" * DEEP,
        as_json(CHAT)[:-1] + b', "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        as_json(CHAT)[:-1] + b', "lang": "\xff' + SECRET.encode() + b'"}',
        as_json(CHAT)[:-1] + b', "lang": "\xed\xa0\x80"}',  # a surrogate in bytes
        as_json(CHAT).replace(b"parcel", b"par\x00cel"),
        as_json(CHAT).decode().encode("utf-16"),
    ],
)
def test_undecodable_json(value: bytes | None) -> None:
    letter = refused(value)
    assert letter.reason == "undecodable" or (value is not None and value.startswith(b"[["))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        as_json(CHAT),
        msgpack.packb(CHAT)[:-1],
        msgpack.packb(CHAT) + b"\x00",
        b"\x81\xa4lang" + b"\x91" * DEEP + b"\xc0",
        b"\x81\xa4lang\xdd\xff\xff\xff\xff",  # an array of four thousand million items that aren't there
        b"\x85" + msgpack.packb(CHAT)[1:] + b"\xa4lang\xa1\xff",
        b"\x85" + msgpack.packb(CHAT)[1:] + b"\xa4lang\xc4\x01a",
        b"\x85" + msgpack.packb(CHAT)[1:] + b"\x01\x02",
        b"\x85" + msgpack.packb(CHAT)[1:] + b"\x91\x01\x02",
        b"\x81\xa2ts\xc7\x0c\xff" + struct.pack(">Iq", 0, 2**62),
    ],
)
def test_bad_msgpack(value: bytes) -> None:
    assert refused(value, headers=MSGPACK).reason in ("undecodable", "invalid")


@pytest.mark.parametrize("content", [None, 1, "x", [], [CHAT], {}, True])
def test_json_that_is_no_event(content: object) -> None:
    assert refused(as_json(content)).reason == "invalid"


def test_a_tombstone_says_so() -> None:
    assert "tombstone" in refused(None).detail


def test_too_large_before_it_is_read() -> None:
    value = as_json(CHAT)
    small = Limits(len(value), LIMITS.max_future_ms)
    assert decode(record(value), "chat", small, NOW) == ([one(CHAT)], [])
    letter = refused(value + b" ", limits=small)
    assert letter.reason == "too_large" and str(len(value) + 1) in letter.detail and str(len(value)) in letter.detail
    assert refused(b"\xff" * (len(value) + 1), limits=small).reason == "too_large"


@pytest.mark.parametrize("key", [None, b"", b"c1", b"another", b"\xff"])
def test_the_key_does_not_matter(key: bytes | None) -> None:
    assert decode(record(as_json(CHAT), key=key), "chat", LIMITS, NOW) == ([one(CHAT)], [])


def test_headers_of_others_and_null_headers_are_passed_over() -> None:
    headers = (("trace", b"\xff"), ("content-type", None), ("ce_id", b"\xff"))
    assert one(CHAT, headers=headers) == one(CHAT)  # type: ignore[arg-type]


# -- Envelopes

Pack = Callable[[object], bytes]


@pytest.mark.parametrize(("pack", "headers"), [(as_json, ()), (msgpack.packb, MSGPACK)], ids=["json", "msgpack"])
def test_an_envelope_gives_up_only_its_bad_items(pack: Pack, headers: tuple[tuple[str, bytes], ...]) -> None:
    second = changed(CHAT, event_id="e3")
    items = [CHAT, changed(CHAT, text=5), second, SECRET, changed(CHAT, ts=NOW * 2), ORDER, {"events": [CHAT]}, None]
    sent = record(pack({"v": 1, "events": items}), headers)
    events, dead = decode(sent, "chat", LIMITS, NOW)
    assert events == [one(CHAT), one(second)]
    assert [(letter.item, letter.reason) for letter in dead] == [
        (1, "invalid"),
        (3, "invalid"),
        (4, "future"),
        (5, "invalid"),
        (6, "invalid"),
        (7, "invalid"),
    ]
    for letter in dead:
        assert letter.record is sent and letter.item is not None
        assert letter.value is not None
        unpack = json.loads if not headers else msgpack.unpackb
        assert unpack(letter.value) == items[letter.item]
        assert SECRET not in letter.detail


def test_an_item_that_is_only_broken_when_read() -> None:
    """What passes over an item is laxer than what reads it: the item is refused, not its neighbours."""
    for bad in (b'{"text": "\xff"}', b"[" * 500 + b"]" * 500):
        value = b'{"events": [' + as_json(CHAT) + b", " + bad + b"]}"
        events, dead = decode(record(value), "chat", LIMITS, NOW)
        assert events == [one(CHAT)]
        assert [(letter.item, letter.value) for letter in dead] == [(1, bad)]


def test_half_an_emoji_in_an_envelope() -> None:
    value = as_json({"events": [CHAT, changed(CHAT, text="CUT")]}).replace(b"CUT", rb"cut \ud83d")
    assert decode(record(value), "chat", LIMITS, NOW) == ([one(CHAT), one(changed(CHAT, text="cut �"))], [])


def test_order_envelope() -> None:
    events, dead = decode(record(as_json({"events": [ORDER, ORDER]})), "order", LIMITS, NOW)
    assert events == [one(ORDER, "order")] * 2 and dead == []


@pytest.mark.parametrize("pack", [as_json, msgpack.packb], ids=["json", "msgpack"])
def test_sizes_of_envelopes(pack: Pack) -> None:
    headers = MSGPACK if pack is msgpack.packb else ()
    events, dead = decode(record(pack({"events": [CHAT] * 1000}), headers), "chat", LIMITS, NOW)
    assert len(events) == 1000 and dead == []
    for items in ([CHAT] * 1001, [], SECRET, None):
        letter = refused(pack({"events": items}), headers=headers)
        assert letter.reason == "invalid" and letter.item is None and letter.detail.startswith("events: Expected")


def test_a_broken_envelope_is_one_dead_letter() -> None:
    assert refused(as_json({"events": [CHAT, CHAT]})[:-2]).reason == "undecodable"
