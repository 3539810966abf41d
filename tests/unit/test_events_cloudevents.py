"""CloudEvents 1.0 over Kafka: binary, structured and batch mode."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgpack
import pytest

from streaming.events import Source, decode
from tests.unit.test_events_decode import (
    CHAT,
    LIMITS,
    NOW,
    ORDER,
    SECRET,
    as_json,
    changed,
    one,
    record,
    refused,
    without,
)
from tests.unit.test_events_segment import TRACK

Headers = tuple[tuple[str, bytes], ...]

STRUCTURED: Headers = (("content-type", b"application/cloudevents+json; charset=utf-8"),)
BATCH: Headers = (("content-type", b"application/cloudevents-batch+json"),)
BARE_CHAT = {"text": CHAT["text"]}
BARE_ORDER = {name: ORDER[name] for name in ("order_id", "currency", "lines")}


def binary(**attributes: str | bytes) -> Headers:
    values = {"specversion": "1.0", "type": "com.example.chat", "source": "/web", **attributes}
    return tuple(
        (f"ce_{name}", value if isinstance(value, bytes) else value.encode()) for name, value in values.items()
    )


def structured(data: object, **attributes: object) -> dict[str, object]:
    return {"specversion": "1.0", "type": "com.example.chat", "source": "/web", "id": "e9", **attributes, "data": data}


ATTRIBUTES = {"id": "e9", "subject": "c9", "time": "2024-05-01T12:00:00Z"}


@pytest.mark.parametrize(("data", "source"), [(BARE_CHAT, "chat"), (BARE_ORDER, "order")])
def test_attributes_fill_what_the_data_lacks(data: dict[str, Any], source: Source) -> None:
    expected = one(changed(data, event_id="e9", customer_id="c9", ts="2024-05-01T12:00:00Z"), source)
    assert one(data, source, binary(**ATTRIBUTES)) == expected
    assert one(structured(data, **ATTRIBUTES), source, STRUCTURED) == expected
    in_bytes = {**structured(None, **ATTRIBUTES), "data_base64": base64.b64encode(as_json(data)).decode()}
    assert one(without(in_bytes, "data"), source, STRUCTURED) == expected
    packed = base64.b64encode(msgpack.packb(data)).decode()
    in_msgpack = {**without(in_bytes, "data"), "data_base64": packed, "datacontenttype": "application/msgpack"}
    assert one(in_msgpack, source, STRUCTURED) == expected


def test_what_the_data_says_goes_before_the_attributes() -> None:
    assert one(CHAT, headers=binary(**ATTRIBUTES)) == one(CHAT)
    assert one(structured(CHAT, **ATTRIBUTES), headers=STRUCTURED) == one(CHAT)
    unused = {
        "id": "x" * 500,
        "subject": "a{b}",
        "time": "yesterday",
    }  # of attributes that fill nothing, nothing is asked
    assert one(CHAT, headers=binary(**unused)) == one(CHAT)


def test_binary_mode_in_msgpack_and_with_names_in_capitals() -> None:
    headers = tuple((name.upper(), value) for name, value in binary(**ATTRIBUTES))
    headers += (("Content-Type", b"application/x-msgpack"),)
    events, dead = decode(record(msgpack.packb(BARE_CHAT), headers), "chat", LIMITS, NOW)
    assert dead == [] and [event.event_id for event in events] == ["e9"]


def test_of_a_repeated_header_the_last_counts() -> None:
    headers = (*binary(**ATTRIBUTES), ("ce_id", b"e10"))
    assert one(BARE_CHAT, headers=headers).event_id == "e10"


def test_headers_without_a_version_are_no_cloudevent() -> None:
    headers = tuple(header for header in binary(**ATTRIBUTES) if header[0] != "ce_specversion")
    assert "event_id" in refused(as_json(BARE_CHAT), headers=headers).detail


def test_a_track_call_within_a_cloudevent() -> None:
    track = {name: TRACK[name] for name in ("type", "event", "properties")}
    event = one(track, "order", binary(**ATTRIBUTES))
    assert (event.event_id, event.customer_id, event.ts) == ("e9", "c9", 1_714_564_800_000)
    assert one(structured(track, **ATTRIBUTES), "order", STRUCTURED) == event


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (binary(**changed(ATTRIBUTES, specversion="0.3")), "specversion: Expected 1.0"),
        (binary(**changed(ATTRIBUTES, specversion=b"\xff")), "ce_specversion: Expected UTF-8"),
        (binary(**changed(ATTRIBUTES, id=b"\xff")), "ce_id: Expected UTF-8"),
        (binary(**changed(ATTRIBUTES, id="")), "event_id (from the CloudEvent): Expected `str` of length >= 1"),
        (binary(**changed(ATTRIBUTES, subject="a{b}")), "customer_id (from the CloudEvent): "),
        (binary(**changed(ATTRIBUTES, subject=SECRET * 20)), "customer_id (from the CloudEvent): "),
        (binary(**changed(ATTRIBUTES, time=SECRET)), "ts (from the CloudEvent): Invalid RFC3339"),
        (
            binary(**changed(ATTRIBUTES, time="2024-05-01T12:00:00")),
            "ts (from the CloudEvent): Expected `datetime` with",
        ),
        (binary(id="e9", subject="c9"), "Object missing required field `ts`"),
        (binary(id="e9", time=ATTRIBUTES["time"]), "Object missing required field `customer_id`"),
        (binary(subject="c9", time=ATTRIBUTES["time"]), "Object missing required field `event_id`"),
    ],
)
def test_bad_binary_mode(headers: Headers, says: str) -> None:
    letter = refused(as_json(BARE_CHAT), headers=headers)
    assert letter.reason == "invalid" and says in letter.detail


def test_attributes_are_held_to_the_limits_of_time() -> None:
    late = binary(**changed(ATTRIBUTES, time="2999-01-01T00:00:00Z"))
    assert refused(as_json(BARE_CHAT), headers=late).reason == "future"


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        (structured(CHAT, specversion="0.3"), "invalid", "specversion: Expected 1.0"),
        (without(structured(CHAT), "specversion"), "invalid", "`specversion`"),
        (without(structured(CHAT), "data"), "invalid", "`data`"),
        ({**structured(CHAT), "data_base64": "e30="}, "invalid", "either data or data_base64"),
        ({**without(structured(CHAT), "data"), "data_base64": f"{SECRET}!"}, "invalid", "data_base64"),
        ({**without(structured(CHAT), "data"), "data_base64": "////"}, "undecodable", "json"),
        (structured(None), "invalid", "Expected `object`"),
        (structured("text"), "invalid", "Expected `object`"),
        (structured({"events": [CHAT]}), "invalid", "envelope"),
        (structured(ORDER), "invalid", "an order on the chat topic"),
        ([structured(CHAT)], "invalid", "Expected `object`"),
        (structured(CHAT, id=5), "invalid", "id: Expected `str"),
    ],
)
def test_bad_structured_mode(content: object, reason: str, says: str) -> None:
    letter = refused(as_json(content), headers=STRUCTURED)
    assert letter.reason == reason and says in letter.detail


def test_a_format_of_cloudevents_that_is_not_json() -> None:
    letter = refused(b"Obj", headers=(("content-type", b"application/cloudevents+avro"),))
    assert letter.reason == "undecodable" and "application/cloudevents+json" in letter.detail


def test_a_batch_gives_up_only_its_bad_items() -> None:
    items = [
        structured(CHAT),
        structured(5),
        structured(changed(CHAT, event_id="e3")),
        SECRET,
        structured({"events": []}),
    ]
    events, dead = decode(record(as_json(items), BATCH), "chat", LIMITS, NOW)
    assert events == [one(CHAT), one(changed(CHAT, event_id="e3"))]
    assert [letter.item for letter in dead] == [1, 3, 4]
    assert [json.loads(letter.value or b"") for letter in dead] == [items[1], items[3], items[4]]


@pytest.mark.parametrize("content", [[], [structured(CHAT)] * 1001, structured(CHAT), {"events": [CHAT]}])
def test_bad_batches(content: object) -> None:
    letter = refused(as_json(content), headers=BATCH)
    assert letter.reason == "invalid" and letter.item is None


def test_an_envelope_in_binary_mode_needs_ids_of_its_own() -> None:
    """One ce_id for all items would make all but the first a repeat, and lose them."""
    value = as_json({"events": [CHAT, BARE_CHAT]})
    events, dead = decode(record(value, binary(**ATTRIBUTES)), "chat", LIMITS, NOW)
    assert events == [one(CHAT)]
    assert [(letter.item, letter.detail) for letter in dead] == [(1, "Object missing required field `event_id`")]
