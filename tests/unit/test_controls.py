"""Controls on their topic: what is one, what is not, and what never tells an id."""

from __future__ import annotations

import binascii
import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.agents.messages import dead_letter_message, delta_message, owner_key, without_delta
from streaming.controls import receipts, search
from streaming.controls.consent import ConsentDenied, allowed, require
from streaming.controls.decode import decode, time_of
from streaming.controls.types import Consent, Erase, Merge, encode, is_nobody, record_key
from streaming.errors import InvalidEvent, LimnerError, SettingsError
from streaming.events import DeadLetter, Limits, Position, Record
from streaming.intake.route import partition_of
from streaming.profiles import keys
from streaming.profiles.delta import Delta
from streaming.profiles.schema import pack
from streaming.profiles.view import Profile
from streaming.settings import Settings

NOW = 1_800_000_000_000
LIMITS = Limits(max_record_bytes=10_000, max_future_ms=1_000)
FIELDS = {"event_id": "e1", "ts": NOW, "type": "merge", "customer_id": "ada", "other": "bo"}


def record(value: Any, key: bytes | None = b"ada\ne1") -> Record:
    body = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return Record(Position("controls", 0, "e", 0), key, body, (), NOW)


def test_each_kind_is_read_and_written_the_same() -> None:
    for more in (
        {"type": "alias"}, {"type": "merge"}, {"type": "unmerge"}, {"type": "consent", "purposes": {"ads": False}},
        {"type": "block"}, {"type": "unblock"}, {"type": "erase", "by": "ada herself"}, {"ts": "2027-01-15T08:00:00Z"},
    ):  # fmt: skip
        control = decode(record(FIELDS | more), LIMITS, NOW)
        assert control is not None and control.ts == NOW and record_key(control) == b"ada\ne1"
        assert decode(record(encode(control)), LIMITS, NOW) == control
    assert decode(record(None), LIMITS, NOW) is None


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        (b"\xff", "undecodable", ""),
        (b"[]", "invalid", "Expected `object`"),
        (b"x" * 20_000, "too_large", "20000 bytes"),
        ({"type": "merges"}, "invalid", "docs/privacy.md"),
        ({"type": "consent", "purposes": {"fun": True}}, "invalid", "docs/privacy.md"),
        ({"type": "consent", "purposes": {}}, "invalid", "purposes"),
        ({"other": "ada"}, "invalid", "another id"),
        ({"other": " Undefined "}, "invalid", "stands for nobody"),
        ({"other": "a}b"}, "invalid", "other"),
        ({"ts": NOW + 2_000}, "future", "ahead"),
        ({"ts": "yesterday"}, "invalid", "ts"),
        ({"ts": "2027-01-15T08:00:00"}, "invalid", "time zone"),
        ({"event_id": "e2"}, "invalid", "key"),
    ],
)
def test_what_is_no_control_says_why(change: Any, reason: str, detail: str) -> None:
    value = change if isinstance(change, bytes) else FIELDS | change
    with pytest.raises(InvalidEvent, match=detail) as error:
        decode(record(value), LIMITS, NOW)
    assert error.value.reason == reason


def test_an_id_that_means_nobody_may_be_erased_but_not_linked() -> None:
    assert all(map(is_nobody, ("null", "NULL", " none ", "0", "undefined", "anonymous", "  ")))
    assert not any(map(is_nobody, ("00", "null-7", "ada", "nobody@x")))
    erase = {"event_id": "e1", "ts": NOW, "type": "erase", "customer_id": "null"}
    assert isinstance(decode(record(erase, b"null\ne1"), LIMITS, NOW), Erase)


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_bytes_do_more_than_be_refused(value: Any) -> None:
    with suppress(InvalidEvent):
        decode(record(value if isinstance(value, bytes) else FIELDS | {"purposes": value, "by": value}), LIMITS, NOW)
    time_of(value if isinstance(value, bytes) else json.dumps(value).encode())


def test_a_tombstones_name_shares_the_slot_of_its_customer_and_does_not_tell_the_id() -> None:
    for customer in ("ada", "陈", "customer-17", "x" * 128, "7"):
        name = keys.tombstone_key("lm", customer)
        tag = name[name.index(b"{") + 1 : name.index(b"}")]
        slot = binascii.crc_hqx(customer.encode(), 0) % keys.SLOTS
        assert binascii.crc_hqx(tag, 0) % keys.SLOTS == slot
        assert customer.encode() not in name or customer == "7"
        assert keys.tombstone_key_of("lm", keys.erased_name(customer)) == name
    # They last: of another version of limner too.
    assert keys.tombstone_key("lm", "ada") == b"lm:{ac80}:x:1b801ce1f0afc61a06e934a72c6b5823"


def test_every_record_of_an_owned_topic_has_a_key_of_its_own_that_tells_its_owner() -> None:
    first, second = (Delta("a\u00e9", (), (), pack({"f": "t/0/e", "at": at, "e": []})) for at in (1, 2))
    message = delta_message("d", first)
    assert message.key != delta_message("d", second).key
    assert (without_delta("d", first).key, without_delta("d", first).value) == (message.key, None)
    assert owner_key(message.key) == "aé".encode()
    for key in (b"ada", b"with\nline", None, b""):
        letters = [
            dead_letter_message("d", DeadLetter(record(b"x", key), "invalid", "", b"x", item), NOW)
            for item in (None, 1, 2)
        ]
        assert len({it.key for it in letters}) == 3
        assert {owner_key(it.key) for it in letters} == {key}
    assert dead_letter_message("d", DeadLetter(record(None), "undecodable", "", None), NOW).value == b""


def test_routed_records_go_where_librdkafkas_consistent_partitioner_sends_them() -> None:
    assert partition_of(b"123456789", 2**32) == 0xCBF43926  # the check value of CRC-32
    assert {partition_of(str(number).encode(), 7) for number in range(100)} == set(range(7))


def test_a_quoted_id_is_found_and_a_longer_one_is_not() -> None:
    spellings = search.quoted("陈-7")
    for found in (json.dumps({"x": "陈-7"}), json.dumps({"x": "陈-7"}, ensure_ascii=False)):
        assert any(it in found.encode() for it in spellings)
    assert any(it in pack({"customer_id": "陈-7"}) for it in spellings)
    assert not any(it in json.dumps({"x": "陈-77"}, ensure_ascii=False).encode() for it in spellings)


RECEIPT = receipts.Receipt(customer="aaaa:0", erased_at=1, done_at=2, by="", removed={"profile": 1}, kept=[], models=[])


def test_a_receipt_that_was_changed_or_is_anothers_is_found_out(tmp_path: Any) -> None:
    key = receipts.signing_key(Settings(cache_dir=tmp_path))
    assert key == receipts.signing_key(Settings(cache_dir=tmp_path)) and len(key) >= 32
    assert (tmp_path / receipts.KEY_FILE).stat().st_mode & 0o777 == 0o600
    signed = receipts.sign(RECEIPT, key)
    receipts.check(msgspec.json.decode(msgspec.json.encode(signed), type=receipts.Receipt), key)
    with pytest.raises(LimnerError, match="changed after"):
        receipts.check(msgspec.structs.replace(signed, erased_at=9), key)
    with pytest.raises(LimnerError, match="LIMNER_RECEIPT_KEY"):
        receipts.check(signed, receipts.signing_key(Settings(receipt_key="another key of mine")))
    with pytest.raises(SettingsError, match="16 characters"):
        receipts.signing_key(Settings(receipt_key="short"))


def test_who_said_nothing_is_asked_of_the_default() -> None:
    profile = Profile(
        customer_id="ada", labels=[], sentiment=None, orders=None, events={}, updated_ms=0, version=1,
        consent={"ads": False, "training": True},
    )  # fmt: skip
    strict = Settings(consent_default={"ads": "denied", "training": "denied", "analytics": "denied"}).consent
    assert [allowed(profile, it, strict) for it in ("ads", "training", "analytics", "personalisation")] == [
        False, True, False, True,
    ]  # fmt: skip
    assert not allowed(None, "ads", strict) and allowed(None, "ads", Settings().consent)
    assert require(profile, "training", strict) is profile
    with pytest.raises(ConsentDenied, match="ads"):
        require(profile, "ads", strict)


def test_controls_name_who_asked_and_keep_it_short() -> None:
    with pytest.raises(InvalidEvent):
        decode(record(FIELDS | {"by": "x" * 129}), LIMITS, NOW)
    assert b'"by"' not in encode(Merge(event_id="e", ts=1, customer_id="a", other="b"))
    assert msgspec.json.decode(encode(Consent(event_id="e", ts=1, customer_id="a", purposes={"ads": True})))[
        "purposes"
    ] == {"ads": True}
