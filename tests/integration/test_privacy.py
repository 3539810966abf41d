"""Consent and erasure: by events, over a real broker and store, with a real worker."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import redis
import redis.asyncio
from click.testing import CliRunner, Result

from streaming import kafka_admin
from streaming.cli import cli
from streaming.controls import search, send
from streaming.controls.agent import Controller
from streaming.controls.erasure import Eraser
from streaming.controls.export import export
from streaming.controls.receipts import Receipt
from streaming.controls.store import ControlStore
from streaming.controls.types import Consent, Control, Erase, Erased, Merge, encode, record_key
from streaming.controls.verify import Verified, verify
from streaming.embedded.store import Store
from streaming.events.types import Position, Record
from streaming.intake.async_send import AsyncSender
from streaming.intake.producer import producer
from streaming.profiles import schema
from streaming.profiles.delta import Delta, Scored, build
from streaming.profiles.keys import audience_key, erased_name, profile_key, receipts_key, tombstone_key
from streaming.profiles.store import ProfileStore
from streaming.profiles.view import Profile
from streaming.settings import Settings
from tests.chaos import history
from tests.chaos.history import fresh_settings
from tests.fakes import DAY_MS
from tests.integration.test_store import REFS, chat, delta

T = TypeVar("T")
NOW = time.time_ns() // 1_000_000


def wait(what: Callable[[], Any], within_s: float = 30.0) -> Any:
    end = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
    return found


class Place:
    """Topics and keys of its own, a worker, and a customer's way through them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.producer = producer(settings)

    def chat(self, customer: str, number: int, ts: int, text: str = "hello") -> None:
        event = {"event_id": f"{customer}-{number}", "customer_id": customer, "ts": ts, "text": text}
        self.producer.produce(self.settings.chat_topic, json.dumps(event).encode(), customer.encode())
        self.producer.flush(10)

    def control(self, control: Control) -> None:
        send.send(self.settings, control)

    def raw(self, customer: str) -> bytes | None:
        with redis.Redis.from_url(self.settings.redis) as client:
            found: Any = client.get(profile_key(self.settings.namespace, customer))
        return found

    def profile(self, customer: str) -> Profile | None:
        raw = self.raw(customer)
        return None if raw is None else Profile.from_bytes(raw, send.now_ms())

    def events(self, customer: str) -> int:
        found = self.profile(customer)
        return found.events.get("chat", 0) if found else 0

    def receipt(self, customer: str) -> Receipt | None:
        found = self.run(lambda store: store.receipts(erased_name(customer)))
        return msgspec.json.decode(found[-1], type=Receipt) if found else None

    def verify(self, customer: str) -> Verified:
        return self.run(lambda store: verify(self.settings, store, customer))

    def run(self, work: Callable[[ControlStore], Awaitable[T]]) -> T:
        async def with_store() -> T:
            async with redis.asyncio.from_url(self.settings.redis) as client:
                return await work(ControlStore(client, self.settings.namespace))

        return asyncio.run(with_store())

    def settle(self, *controls: Control) -> None:
        """As a worker would that reads these controls, in this process."""

        async def run() -> None:
            async with redis.asyncio.from_url(self.settings.redis) as client:
                sender = AsyncSender(self.settings)
                try:
                    eraser = Eraser(self.settings, ControlStore(client, self.settings.namespace), sender)
                    place = Position(self.settings.control_topic, 0, "e", 0)
                    records = [Record(place, record_key(it), encode(it), (), NOW) for it in controls]
                    await Controller(eraser).settle(records)
                finally:
                    sender.close()

        asyncio.run(run())


def erasing(customer: str, ts: int, event_id: str = "") -> Erase:
    return Erase(event_id=event_id or str(uuid.uuid4()), ts=ts, customer_id=customer)


@pytest.fixture
def place(any_kafka: str, store: Store, tmp_path: Path) -> Place:
    settings = fresh_settings(any_kafka, store.url, cache_dir=tmp_path)
    kafka_admin.ensure_topics(settings)
    return Place(settings)


@pytest.fixture(scope="module")
def worked(any_kafka: str, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With a worker that runs: starting one takes seconds, so tests share it and name customers of their own."""
    settings = fresh_settings(any_kafka, store.url, cache_dir=tmp_path_factory.mktemp("cache"))
    kafka_admin.ensure_topics(settings)
    with history.start_worker(history.environment(settings, LIMNER_CACHE_DIR=str(settings.cache_dir))):
        yield Place(settings)


def test_an_erased_customer_is_gone_stays_gone_and_may_come_back(worked: Place) -> None:
    place = worked
    for number in range(30):
        place.chat("zoe-ann", number, NOW - DAY_MS + number, f"message {number}")
        place.chat("bo", number, NOW - DAY_MS + number, f"message {number}")
    place.producer.produce(place.settings.chat_topic, b'{"customer_id": "zoe-ann", "text": 1}', b"zoe-ann")
    place.producer.produce(place.settings.chat_topic, b'{"customer_id": "bo", "text": 1}', b"bo")
    place.producer.flush(10)
    place.control(Merge(event_id="m1", ts=NOW - 5_000, customer_id="zoe-ann", other="bo"))
    wait(lambda: place.events("zoe-ann") == 30 and place.events("bo") == 30)
    wait(lambda: b"zoe-ann" in (place.raw("bo") or b""))
    wait(lambda: len(search.dead_letters(place.settings, "zoe-ann")) == 1)
    before = place.run(lambda store: store.audiences("zoe-ann"))
    assert before and search.deltas(place.settings, "zoe-ann")

    place.control(erasing("zoe-ann", NOW))
    receipt = wait(lambda: place.receipt("zoe-ann"))
    removed = receipt.removed
    assert (removed["profile"], removed["audiences"], removed["links"]) == (1, len(before), 1)
    assert removed["dead letters"] == 1 and removed["deltas"] >= 1
    assert b"zoe-ann" not in msgspec.json.encode(receipt)
    found = wait(lambda: (it := place.verify("zoe-ann")) and not it.traces and it)
    assert found.receipt == receipt
    assert found.sources[place.settings.chat_topic] == 31  # the producer's own, which end by retention
    assert b"zoe-ann" not in (place.raw("bo") or b"")
    assert place.events("bo") == 30 and len(search.dead_letters(place.settings, "bo")) == 1

    place.chat("zoe-ann", 99, NOW - 1)  # of before, and late
    place.chat("zoe-ann", 100, NOW + 1)
    wait(lambda: place.events("zoe-ann") == 1)
    assert not place.verify("zoe-ann").traces
    assert place.profile("bo") is not None


def test_an_erasure_repeated_or_found_half_done_ends_the_same(place: Place) -> None:
    place.settle(Consent(event_id="c1", ts=NOW - 10, customer_id="zoe-ann", purposes={"ads": False}))
    control = erasing("zoe-ann", NOW, "e1")
    with redis.Redis.from_url(place.settings.redis) as client:  # a crash after its first step
        client.set(tombstone_key(place.settings.namespace, "zoe-ann"), NOW)
    place.settle(control)
    assert place.raw("zoe-ann") is None
    first = place.receipt("zoe-ann")
    place.settle(Consent(event_id="c2", ts=NOW + 5, customer_id="zoe-ann", purposes={"ads": True}))
    place.settle(control, erasing("zoe-ann", NOW - 100))
    assert place.receipt("zoe-ann") == first
    again = place.profile("zoe-ann")
    assert again is not None and again.consent == {"ads": True}, "what came after an erasure is not its business"


def test_what_is_left_of_an_erasure_keeps_old_events_out_of_a_new_store(place: Place) -> None:
    place.settle(erasing("zoe-ann", NOW))
    (left,) = [it for it in history.read_all(place.settings, place.settings.control_topic) if it.value]
    assert b"zoe-ann" not in (left.value or b"") + (left.key or b"")
    with redis.Redis.from_url(place.settings.redis) as client:
        client.delete(*client.scan_iter(f"{place.settings.namespace}:*"))
    place.settle(msgspec.json.decode(left.value or b"", type=Erased))
    with redis.Redis.from_url(place.settings.redis) as client:
        assert client.get(tombstone_key(place.settings.namespace, "zoe-ann")) == str(NOW).encode()
    place.settle(Consent(event_id="c", ts=NOW, customer_id="zoe-ann", purposes={"ads": True}))
    assert place.raw("zoe-ann") is None


def test_who_denies_analytics_is_counted_and_not_analysed(worked: Place) -> None:
    place = worked
    place.control(Consent(event_id="c1", ts=NOW, customer_id="dan", purposes={"analytics": False}))
    wait(lambda: place.profile("dan"))
    for number in range(5):
        place.chat("dan", number, NOW + number, f"message {number}")
    wait(lambda: place.events("dan") == 5)
    denied = place.profile("dan")
    assert denied is not None and not denied.labels and denied.consent == {"analytics": False}
    assert place.run(lambda store: store.audiences("dan")) == []
    place.control(Consent(event_id="c2", ts=NOW + 1, customer_id="dan", purposes={"analytics": True}))
    wait(lambda: (place.profile("dan") or denied).consent["analytics"])
    for number in range(5, 12):
        place.chat("dan", number, NOW + number, f"message {number}")
    wait(lambda: place.events("dan") == 12)
    granted = place.profile("dan")
    assert granted is not None and granted.labels
    assert sum(label.evidence for label in granted.labels) <= 7 * 3


def test_a_control_that_can_not_be_is_a_dead_letter_and_the_rest_goes_on(worked: Place) -> None:
    place = worked
    topic = place.settings.control_topic
    good = Consent(event_id="c1", ts=NOW, customer_id="eve", purposes={"ads": False})
    place.producer.produce(topic, b"not json", b"k")
    place.producer.produce(topic, encode(good), b"eve")  # compaction would lose all but the last of such a key
    place.producer.produce(topic, encode(Merge(event_id="m", ts=NOW, customer_id="eve", other="NULL ")), b"eve\nm")
    place.producer.produce(topic, None, b"eve\nx")
    place.producer.flush(10)
    place.control(good)
    wait(lambda: place.profile("eve"))

    def refused() -> list[str]:
        heads = [dict(it.headers) for it in history.read_all(place.settings, place.settings.dead_letter_topic)]
        return sorted(head["limner-detail"].decode() for head in heads if head.get("limner-topic") == topic.encode())

    details = wait(lambda: (it := refused()) and len(it) == 3 and it)
    assert "newline and event_id" in details[2] and "stands for nobody" in details[0]


def test_all_that_is_known_is_exported(worked: Place) -> None:
    place = worked
    place.chat("fay", 1, NOW, "message 3")
    place.producer.produce(place.settings.chat_topic, b'{"customer_id": "fay", "text": 1}', b"fay")
    place.producer.flush(10)
    place.control(Merge(event_id="m1", ts=NOW, customer_id="fay", other="gil"))
    wait(lambda: place.events("fay") and search.dead_letters(place.settings, "fay"))
    wait(lambda: b"gil" in (place.raw("fay") or b""))
    known = json.loads(
        msgspec.json.encode(place.run(lambda store: export(place.settings, store, "fay", send.now_ms())))
    )
    assert known["linked"] == ["gil"] and known["profile"]["events"] == {"chat": 1}
    assert [it["delta"]["id"] for it in known["deltas"]] == ["fay"]
    assert [it["value"] for it in known["dead_letters"]] == ['{"customer_id": "fay", "text": 1}']
    assert json.loads(known["controls"][0]["control"])["event_id"] == "m1"
    assert known["source_records"][place.settings.chat_topic] == 2
    assert len(known["audiences"]) == len(known["profile"]["labels"])


def test_an_audience_written_while_its_member_is_erased_is_mended(place: Place) -> None:
    """The race that a lock would be for: merged before the erasure, written into the audience after it."""

    async def run() -> None:
        async with redis.asyncio.from_url(place.settings.redis) as client:
            namespace = place.settings.namespace
            store, controls = ProfileStore(client, namespace), ControlStore(client, namespace)
            await store.merge([delta([(1, chat(1, "zoe-ann", NOW - 10), [(0, 0.9)])])])
            late, update = delta([(2, chat(2, "zoe-ann", NOW - 5), [(1, 0.9)])]), store._update_audiences
            erased = False

            async def after_an_erasure(*args: Any) -> None:
                nonlocal erased
                if not erased:
                    erased = True
                    await controls.mark_erased("zoe-ann", NOW)
                    await controls.leave_audiences("zoe-ann")
                    await controls.delete("zoe-ann", NOW)
                await update(*args)

            store._update_audiences = after_an_erasure  # type: ignore[method-assign]
            await store.merge([late])
            for ref in REFS[:2]:
                assert await client.zscore(audience_key(namespace, ref.facet, ref.label), "zoe-ann") is None

    asyncio.run(run())


def test_who_comes_back_while_being_erased_begins_anew_and_stays(store: Store) -> None:
    """Between tombstone and deletion: a merge must neither go on with the old profile nor be deleted with it."""

    async def run() -> None:
        namespace = f"n{uuid.uuid4().hex[:8]}"
        async with redis.asyncio.from_url(store.url) as client:
            merging, controls = ProfileStore(client, namespace), ControlStore(client, namespace)
            late = delta([(2, chat(2, "zoe-ann", NOW - 5), [(2, 0.9)]), (3, chat(3, "zoe-ann", NOW), [])])
            await merging.merge([delta([(1, chat(1, "zoe-ann", NOW - 10), [(0, 0.9)])])])
            assert await controls.mark_erased("zoe-ann", NOW) is not None
            assert await merging.merge([late]) == [late]
            await merging.merge([delta([(4, chat(4, "zoe-ann", NOW + 5), [(1, 0.9)])])])
            assert not await controls.delete("zoe-ann", NOW)
            await controls.leave_audiences("zoe-ann")
            await controls.join_audiences("zoe-ann")
            profile = Profile.from_bytes(await controls.profile("zoe-ann") or b"", NOW + 10)
            assert (profile.events, [it.label for it in profile.labels]) == ({"chat": 1}, [REFS[1].label])
            assert await controls.audiences("zoe-ann") == [f"{REFS[1].facet}/{REFS[1].label}"]
            score = await client.zscore(audience_key(namespace, REFS[1].facet, REFS[1].label), "zoe-ann")
            await client.delete(audience_key(namespace, REFS[1].facet, REFS[1].label))
            await merging.merge([delta([(4, chat(4, "zoe-ann", NOW + 5), [(1, 0.9)])])])
            assert score == await client.zscore(audience_key(namespace, REFS[1].facet, REFS[1].label), "zoe-ann")

    asyncio.run(run())


def test_a_link_to_an_erased_id_leaves_no_name_behind(place: Place) -> None:
    place.settle(erasing("zoe-ann", NOW))
    place.settle(Merge(event_id="m", ts=NOW - 1, customer_id="bo", other="zoe-ann"))  # of before, and late
    assert place.raw("bo") is None and place.raw("zoe-ann") is None
    place.settle(Merge(event_id="n", ts=NOW + 1, customer_id="bo", other="zoe-ann"))
    assert b"zoe-ann" in (place.raw("bo") or b"")


def test_labels_past_their_retention_are_hidden_at_once_and_removed_at_the_next_merge(store: Store) -> None:
    (old, new), namespace = REFS[:2], f"n{uuid.uuid4().hex[:8]}"

    def said(number: int, ts: int) -> Delta:
        item = Scored(Position("t", 0, "e1", number), chat(number, "zoe-ann", ts), (), [(number, 0.9)])
        return build([item], "chat", REFS, "m1", ts)[0]

    async def run() -> None:
        async with redis.asyncio.from_url(store.url) as client:
            merging = ProfileStore(client, namespace, retention_ms={"interests": 20 * DAY_MS})
            await merging.merge([said(0, NOW - 19 * DAY_MS)])
            raw = await client.get(profile_key(namespace, "zoe-ann"))
            assert [it.label for it in Profile.from_bytes(raw, NOW).labels] == [old.label]
            assert Profile.from_bytes(raw, NOW + 2 * DAY_MS).labels == []

            await merging.merge([said(1, NOW + 2 * DAY_MS)])
            stored = schema.unfold(await client.get(profile_key(namespace, "zoe-ann")))
            assert list(stored["s"]["chat"]["l"]["interests"][1]) == [new.label]
            assert await client.zscore(audience_key(namespace, old.facet, old.label), "zoe-ann") is None
            assert await client.zscore(audience_key(namespace, new.facet, new.label), "zoe-ann") is not None
            assert stored["s"]["chat"]["n"] == 2

    asyncio.run(run())


def test_the_command_line_links_asks_erases_and_verifies(worked: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place, settings = worked, worked.settings
    for name, value in history.environment(settings, LIMNER_CACHE_DIR=str(settings.cache_dir)).items():
        monkeypatch.setenv(name, value)

    def limner(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments)

    place.chat("hal", 1, send.now_ms(), "message 3")
    wait(lambda: place.events("hal") == 1)
    assert limner("identity", "link", "hal", "ida").exit_code == 0
    wait(lambda: limner("identity", "show", "hal").stdout == "ida\n")
    assert limner("identity", "link", "hal", "null").exit_code == 2
    assert limner("consent", "hal", "--deny", "ads").exit_code == 0
    wait(lambda: "ads              denied\n" in limner("consent", "hal").stdout)
    assert json.loads(limner("profile", "hal", "--export").stdout)["consent"]["ads"][0] is False
    assert "never erased" in str(limner("erase", "--verify", "hal").exception)
    assert limner("erase", "hal").exit_code == 1  # nobody said yes
    erased = limner("erase", "hal", "--yes", "--by", "the shop")
    receipt = msgspec.json.decode(erased.stdout, type=Receipt)
    assert (receipt.removed["profile"], receipt.by) == (1, "the shop")
    wait(lambda: limner("erase", "--verify", "hal").exit_code == 0)

    forged = msgspec.structs.replace(receipt, removed={"profile": 0})
    with redis.Redis.from_url(settings.redis) as client:
        client.lset(receipts_key(settings.namespace, erased_name("hal")), 0, msgspec.json.encode(forged))
    assert "changed after it was signed" in str(limner("erase", "--verify", "hal").exception)
