"""A batch is settled whatever happens to it: poison, refusals, a store or broker that is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import redis
import redis.asyncio

from streaming import kafka_admin
from streaming.agents.messages import owner_key
from streaming.agents.settle import DependencyGone, Settler
from streaming.embedded.store import Store
from streaming.events.types import Position, Record, Source
from streaming.intake.async_send import AsyncSender
from streaming.profiles import schema
from streaming.profiles.delta import Evidence
from streaming.profiles.keys import profile_key
from streaming.profiles.store import ProfileStore
from streaming.settings import Settings
from tests.chaos.history import fresh_settings, read_all
from tests.fakes import HashScorer

NOW = 1_700_000_000_000


@dataclass
class Place:
    settings: Settings

    def settle(
        self, records: Sequence[Record], scorer: HashScorer | None = None, meanwhile: Callable[[], None] | None = None
    ) -> None:
        async def run() -> None:
            timeout = self.settings.store_timeout_s
            async with redis.asyncio.from_url(
                self.settings.redis, socket_timeout=timeout, socket_connect_timeout=timeout
            ) as client:
                store = ProfileStore(client, self.settings.namespace)
                sender = AsyncSender(self.settings)
                settler = Settler("chat", self.settings, scorer or HashScorer(), store, sender)
                try:
                    outcome = await settler.process(records)
                    await settler.publish(outcome)
                    if meanwhile:
                        asyncio.get_running_loop().call_later(0.5, meanwhile)
                    await settler.merge(records, outcome)
                finally:
                    settler.close()
                    sender.close()

        asyncio.run(run())

    def applied(self, customer: str) -> int:
        with redis.Redis.from_url(self.settings.redis) as client:
            raw = client.get(profile_key(self.settings.namespace, customer))
        if raw is None:
            return 0
        assert isinstance(raw, bytes)
        count: int = schema.unfold(raw)["s"]["chat"]["n"]
        return count

    def dead(self) -> list[tuple[str, int, bytes | None]]:
        """(reason, offset, value) of each dead letter."""
        letters = read_all(self.settings, self.settings.dead_letter_topic)
        heads = [dict(letter.headers) for letter in letters]
        return sorted(
            (head["limner-reason"].decode(), int(head["limner-offset"]), letter.value)
            for head, letter in zip(heads, letters, strict=True)
        )


@pytest.fixture
def place(any_kafka: str, redis_url: str) -> Place:
    settings = fresh_settings(any_kafka, redis_url)
    kafka_admin.ensure_topics(settings)
    return Place(settings)


@pytest.fixture
def own_store() -> Iterator[Store]:
    """A store that a test may kill."""
    with Store.start(appendonly=True) as store:
        yield store


def chats(place: Place, *texts: str) -> list[Record]:
    return [
        Record(
            Position(place.settings.chat_topic, 0, "e1", offset),
            b"ada",
            json.dumps({"event_id": f"m{offset}", "customer_id": "ada", "ts": NOW, "text": text}).encode(),
            (("trace", b"t-1"),),
            NOW,
        )
        for offset, text in enumerate(texts)
    ]


def test_poison_is_found_and_its_neighbours_are_merged(place: Place) -> None:
    records = chats(place, *["fine"] * 7, "poison", *["fine"] * 5, "more poison", "fine")
    place.settle(records)
    assert place.applied("ada") == 13
    assert place.dead() == [("poison", 7, records[7].value), ("poison", 13, records[13].value)]


def test_what_can_not_be_decoded_keeps_bytes_headers_and_position(place: Place) -> None:
    broken = Record(
        Position(place.settings.chat_topic, 3, "e1", 41), b"k\xff", b"\x00not json", (("trace", b"t-1"),), NOW
    )
    place.settle([broken])
    (letter,) = read_all(place.settings, place.settings.dead_letter_topic)
    assert (owner_key(letter.key), letter.value) == (broken.key, broken.value)
    head = dict(letter.headers)
    assert head["trace"] == b"t-1"
    about = {name: head[f"limner-{name}"].decode() for name in ("reason", "topic", "partition", "offset", "epoch")}
    assert about == {
        "reason": "undecodable", "topic": place.settings.chat_topic, "partition": "3", "offset": "41", "epoch": "e1",
    }  # fmt: skip


def test_a_record_that_leaves_no_room_for_headers_is_cut_and_says_so(place: Place) -> None:
    huge = Record(Position(place.settings.chat_topic, 0, "e1", 1), None, b"x" * 1_048_000, (), NOW)
    place.settle([huge])
    (letter,) = read_all(place.settings, place.settings.dead_letter_topic)
    assert letter.value == b"x" * 1_000_000
    assert dict(letter.headers)["limner-cut-from-bytes"] == b"1048000"


def test_a_refused_delta_becomes_dead_letters_of_its_records(place: Place) -> None:
    with redis.Redis.from_url(place.settings.redis) as client:
        newer = schema.pack({"v": schema.PROFILE_VERSION + 1})
        client.set(profile_key(place.settings.namespace, "ada"), newer)
    place.settle(chats(place, "one", "two"))
    assert [(reason, offset) for reason, offset, _ in place.dead()] == [("refused", 0), ("refused", 1)]


def test_a_model_that_fails_on_everything_condemns_nothing(place: Place) -> None:
    class Broken(HashScorer):
        def evidence(self, texts: list[str], source: Source) -> list[Evidence]:
            raise RuntimeError("CUDA error")

    with pytest.raises(DependencyGone, match="every text"):
        place.settle(chats(place, "one", "two"), Broken())
    assert place.dead() == []


def test_a_store_that_comes_back_gets_the_batch_once(any_kafka: str, own_store: Store) -> None:
    settings = fresh_settings(any_kafka, own_store.url, store_timeout_s=0.5)
    kafka_admin.ensure_topics(settings)
    place = Place(settings)
    place.settle(chats(place, "one"))
    own_store.kill()

    place.settle(chats(place, "one", "two", "three"), meanwhile=own_store.restart)
    assert place.applied("ada") == 3


def test_a_store_that_is_full_is_waited_for(any_kafka: str, own_store: Store) -> None:
    place = Place(fresh_settings(any_kafka, own_store.url))
    kafka_admin.ensure_topics(place.settings)
    with redis.Redis.from_url(own_store.url) as client:
        client.config_set("maxmemory", "1mb")

        def make_room() -> None:
            client.config_set("maxmemory", "0")

        place.settle(chats(place, "one", "two"), meanwhile=make_room)
    assert place.applied("ada") == 2
    assert place.dead() == []


def test_a_store_that_stays_away_ends_the_work(any_kafka: str, own_store: Store) -> None:
    settings = fresh_settings(any_kafka, own_store.url, store_timeout_s=0.2, store_patience_s=1.0)
    kafka_admin.ensure_topics(settings)
    place = Place(settings)
    own_store.kill()
    with pytest.raises(DependencyGone, match="redis has been away"):
        place.settle(chats(place, "one"))


def test_a_broker_that_is_away_stops_before_the_merge(redis_url: str) -> None:
    settings = fresh_settings("127.0.0.1:9", redis_url, store_patience_s=0.5)
    place = Place(settings)
    with pytest.raises(DependencyGone, match="kafka has been away"):
        place.settle(chats(place, "one"))
    assert place.applied("ada") == 0
