"""What the merge script promises beside being the oracle's equal: bounds, refusals, audiences."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import msgpack
import pytest
import redis
import redis.asyncio

from streaming.events.types import Chat, Event, Line, Order, Position, Source
from streaming.profiles import schema
from streaming.profiles.delta import Delta, Evidence, Scored, build
from streaming.profiles.keys import audience_key, profile_key
from streaming.profiles.store import MergeRefused, ProfileStore
from tests.fakes import DAY_MS, Ref

NOW = 1_800_000_000_000
REFS = [Ref("interests", f"a-rather-long-label-name-{i}", 30 * DAY_MS) for i in range(60)]


def chat(number: int, customer: str = "ada", ts: int = NOW) -> Chat:
    return Chat(event_id=f"{'e' * 100}-{number}", customer_id=customer, ts=ts, text="")


def delta(
    events: Sequence[tuple[int, Event, Evidence]], source: Source = "chat", epoch: str = "e1", partition: int = 0
) -> Delta:
    scored = [Scored(Position("t", partition, epoch, at), event, (), evidence) for at, event, evidence in events]
    return build(scored, source, REFS, "m1", NOW)[0]


def merge(url: str, *deltas: Delta) -> None:
    async def run() -> None:
        async with redis.asyncio.from_url(url) as client:
            await ProfileStore(client, "lm").merge(deltas)

    asyncio.run(run())


def stored(url: str, customer: str = "ada") -> dict[str, object]:
    with redis.Redis.from_url(url) as client:
        raw = client.get(profile_key("lm", customer))
    assert isinstance(raw, bytes)
    assert len(raw) <= schema.MAX_PROFILE_BYTES
    return schema.unfold(raw)


def chats_applied(url: str) -> int:
    profile = stored(url)
    count: int = profile["s"]["chat"]["n"]  # type: ignore[index]
    return count


def test_a_topic_made_again_is_not_a_repeat(redis_url: str) -> None:
    merge(redis_url, delta([(5, chat(1), [])], epoch="old"))
    merge(redis_url, delta([(0, chat(2), [])], epoch="new"))
    merge(redis_url, delta([(0, chat(3), [])], epoch="new"))  # at its fence
    assert chats_applied(redis_url) == 2


def test_a_zombie_that_writes_an_old_batch_changes_nothing(redis_url: str) -> None:
    old, new = delta([(1, chat(1), [(0, 0.5)])]), delta([(2, chat(2), [(0, 0.25)])])
    merge(redis_url, old, new)
    before = stored(redis_url)
    merge(redis_url, old)
    assert stored(redis_url) == before


def test_a_history_longer_than_the_ring_read_again_from_its_start_changes_nothing(redis_url: str) -> None:
    events = [(number, chat(number), [(number % 9, 0.5)]) for number in range(3 * schema.RING)]
    merge(redis_url, *(delta(events[first : first + 10]) for first in range(0, len(events), 10)))
    before = stored(redis_url)
    merge(redis_url, *(delta(events[first : first + 7]) for first in range(0, len(events), 7)))
    assert stored(redis_url) == before
    merge(redis_url, delta([*events[10:], (len(events), chat(len(events)), [])]))  # and goes on within a batch
    assert chats_applied(redis_url) == len(events) + 1


def test_all_events_of_one_record_count(redis_url: str) -> None:
    merge(redis_url, delta([(7, chat(1), []), (7, chat(2), []), (7, chat(3), [])]))
    merge(redis_url, delta([(7, chat(1), []), (7, chat(2), []), (7, chat(3), [])]))
    assert chats_applied(redis_url) == 3


def test_a_customer_of_many_large_records_gets_several_deltas_cut_between_records() -> None:
    evidence = [(i, 0.5) for i in range(60)]
    events = [(at, chat(at * 1000 + i), evidence) for at in range(5) for i in range(40)]
    scored = [Scored(Position("t", 0, "e1", at), event, (), said) for at, event, said in events]
    deltas = build(scored, "chat", REFS, "m1", NOW)
    assert len(deltas) > 1
    assert all(len(it.data) < 1_000_000 for it in deltas)
    offsets = [{entry[0] for entry in schema.unpack(it.data)["e"]} for it in deltas]
    assert sum(len(of_delta) for of_delta in offsets) == 5, "a record was cut in two"


def test_a_profile_stays_below_its_cap_and_keeps_its_orders(redis_url: str) -> None:
    sku = "s" * 120
    for number in range(40):
        lines = [Line(sku=f"{sku}{number}{i}", description="ж" * 60, quantity=1, unit_price=1) for i in range(8)]
        order = Order(event_id=f"o{number}", customer_id="ada", ts=NOW, order_id="1", currency="GBP", lines=lines)
        item = Scored(Position("t", 0, "e1", number), order, [line.description for line in lines], [])
        merge(redis_url, *build([item], "order", REFS, "m" * 60, NOW))
        evidence = [(i, 0.5 + number / 100) for i in range(60)]
        said = Scored(Position("c", 0, "e1", number), chat(number), (), evidence)
        merge(redis_url, *build([said], "chat", REFS, "m" * 60, NOW))
    profile = stored(redis_url)
    assert profile["o"]["n"] == 40  # type: ignore[index]
    assert profile["o"]["m"] == {"GBP": [40 * 8 * 10_000, 0, 0]}  # type: ignore[index]
    assert profile["f"] == {"t/0/e1": 39, "c/0/e1": 39}
    labels = profile["s"]["chat"]["l"]["interests"][1]  # type: ignore[index]
    assert 0 < len(labels) <= schema.LABELS_PER_FACET


def test_the_weakest_label_goes_first(redis_url: str) -> None:
    evidence = [(i, 0.1 + i / 100) for i in range(schema.LABELS_PER_FACET + 4)]
    merge(redis_url, delta([(1, chat(1), evidence)]))
    labels = stored(redis_url)["s"]["chat"]["l"]["interests"][1]  # type: ignore[index]
    assert set(labels) == {REFS[i].label for i in range(4, schema.LABELS_PER_FACET + 4)}


def test_too_many_currencies_are_refused_and_the_others_merged(redis_url: str) -> None:
    def order(number: int, customer: str) -> Delta:
        currency = f"{chr(65 + number // 26)}{chr(65 + number % 26)}X"
        line = Line(sku="s", description="", quantity=1, unit_price=1)
        event = Order(event_id=f"{number}", customer_id=customer, ts=NOW, order_id="1", currency=currency, lines=[line])
        return delta([(number, event, [])], "order")

    with pytest.raises(MergeRefused, match="16 currencies") as refusal:
        merge(redis_url, *(order(number, "ada") for number in range(18)), order(18, "bo"))
    assert [position.offset for position, _ in refusal.value.refused] == [16, 17]
    assert len(stored(redis_url)["o"]["m"]) == schema.MAX_CURRENCIES  # type: ignore[index,arg-type]
    assert stored(redis_url, "bo")["o"]["n"] == 1  # type: ignore[index]


def test_a_profile_of_a_newer_version_is_left_alone(redis_url: str) -> None:
    newer = msgpack.packb({"v": schema.PROFILE_VERSION + 1, "id": "ada"}, use_bin_type=False)
    with redis.Redis.from_url(redis_url) as client:
        client.set(profile_key("lm", "ada"), newer)
        with pytest.raises(MergeRefused, match="upgrade the worker"):
            merge(redis_url, delta([(1, chat(1), [])]))
        assert client.get(profile_key("lm", "ada")) == newer


def test_keys_of_other_makers_survive_a_merge(redis_url: str) -> None:
    merge(redis_url, delta([(1, chat(1), [])]))
    key = profile_key("lm", "ada")
    with redis.Redis.from_url(redis_url) as client:
        raw = client.get(key)
        assert isinstance(raw, bytes)
        client.set(key, schema.pack(schema.unpack(raw) | {"c": {"ads": False}}))
    merge(redis_url, delta([(2, chat(2), [])]))
    assert stored(redis_url)["c"] == {"ads": False}


def test_an_audience_is_ordered_by_strength_at_any_time_and_heals_after_a_crash(redis_url: str) -> None:
    label = [(0, 0.9)]
    day = DAY_MS
    deltas = [
        delta([(1, chat(1, "long-ago", NOW - 90 * day), label), (2, chat(2, "long-ago", NOW - 89 * day), label)]),
        delta([(3, chat(3, "today", NOW), label)]),
        delta([(4, chat(4, "both", NOW - 10 * day), label)]),
        delta([(4, chat(5, "both", NOW - 5 * day), label)], "order", partition=1),
    ]
    merge(redis_url, *deltas)
    key = audience_key("lm", REFS[0].facet, REFS[0].label)
    with redis.Redis.from_url(redis_url) as client:
        assert client.zrange(key, 0, -1, desc=True) == [b"both", b"today", b"long-ago"]
        score = client.zscore(key, "both")
        client.zadd(key, {"today": 1e6})  # as if a worker that merged later had been quicker here
        merge(redis_url, *deltas)
        assert client.zscore(key, "today") == 1e6
        client.delete(key)  # as if a worker had died between the merge and this
        merge(redis_url, *deltas)
        assert client.zscore(key, "both") == score
    assert isinstance(score, float)
    weight = 0.9 * 2 ** (-10 / 30) + 0.9 * 2 ** (-5 / 30)
    assert math.isclose(2 ** (score - NOW / REFS[0].half_life_ms), weight, rel_tol=1e-9)


def test_a_store_that_lost_its_scripts_gets_them_again(redis_url: str) -> None:
    async def run() -> None:
        async with redis.asyncio.from_url(redis_url) as client:
            store = ProfileStore(client, "lm")
            await store.merge([delta([(1, chat(1), [])])])
            await client.script_flush()
            await store.merge([delta([(2, chat(2), [])])])

    asyncio.run(run())
    assert chats_applied(redis_url) == 2
