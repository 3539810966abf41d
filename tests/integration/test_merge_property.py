"""However a history is cut, repeated and restarted: the profile of the oracle, which sees each event once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.embedded.store import Store as EmbeddedStore
from streaming.events import Limits
from streaming.events.types import Position, Record, Source
from streaming.pipeline import process
from streaming.profiles import schema
from streaming.profiles.delta import Delta
from streaming.profiles.keys import profile_key
from streaming.profiles.store import ProfileStore
from tests import oracle
from tests.fakes import DAY_MS, HashScorer
from tests.reading import scored

NOW = 1_800_000_000_000
LIMITS = Limits(max_record_bytes=1_000_000, max_future_ms=0)
SCORER = HashScorer()
TOPIC: dict[Source, str] = {"chat": "chat-events", "order": "order-events"}

customers = st.sampled_from(["ada", "bo", "陈"])
times = st.integers(NOW - 400 * DAY_MS, NOW)
lines = st.lists(
    st.fixed_dictionaries(
        {
            "sku": st.integers(1, 12).map("sku-{}".format),
            "quantity": st.integers(1, 50) | st.sampled_from([0.5, 2.25]),
            "unit_price": st.integers(0, 9_999).map(lambda pence: pence / 100),
        }
    ).map(lambda line: {**line, "description": f"thing {line['sku']}"}),
    min_size=1,
    max_size=6,
)
chats = st.fixed_dictionaries(
    {"customer_id": customers, "ts": times, "text": st.integers(0, 40).map("words {}".format)}
)
orders = st.fixed_dictionaries(
    {
        "customer_id": customers,
        "ts": times,
        "order_id": st.integers(1, 99).map(str),
        "currency": st.sampled_from(["GBP", "EUR"]),
        "lines": lines,
        "status": st.sampled_from(["placed", "placed", "placed", "cancelled", "returned"]),
    }
)


def records(source: Source, events: list[dict[str, object]]) -> list[Record]:
    return [
        Record(Position(TOPIC[source], 0, "e1", offset), None, json.dumps(event).encode(), (), NOW)
        for offset, event in enumerate(events)
    ]


@st.composite
def histories(draw: st.DrawFn) -> dict[Source, list[Record]]:
    """Up to 25 records a source; some are a producer's repeats of one of the last few."""
    result: dict[Source, list[Record]] = {}
    sources: list[Source] = ["chat", "order"]
    for source in sources:
        events = draw(st.lists(chats if source == "chat" else orders, max_size=25))
        named = [{**event, "event_id": f"{source}-{number}"} for number, event in enumerate(events)]
        sent: list[dict[str, object]] = []
        for event in named:
            sent.append(event)
            if draw(st.integers(0, 5)) == 0:
                sent.append(draw(st.sampled_from(sent[-5:])))
        result[source] = records(source, sent)
    return result


@st.composite
def deliveries(draw: st.DrawFn, history: dict[Source, list[Record]]) -> list[tuple[Source, list[Record]]]:
    """Batches of each source in order, interleaved; now and then a restart goes back to an earlier offset."""
    at = dict.fromkeys(history, 0)
    batches: list[tuple[Source, list[Record]]] = []
    while unread := [source for source in history if at[source] < len(history[source])]:
        source = draw(st.sampled_from(unread))
        size = draw(st.integers(1, 9))
        batches.append((source, history[source][at[source] : at[source] + size]))
        at[source] += size
        if len(batches) < 60 and draw(st.integers(0, 4)) == 0:
            back = draw(st.sampled_from(list(history)))
            at[back] = draw(st.integers(0, min(at[back], len(history[back]))))
    return batches


class Store:
    """A store that each example finds empty."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.client = redis.asyncio.from_url(url)
        self.profiles = ProfileStore(self.client, "lm")

    def merge(self, deltas: list[Delta]) -> None:
        self.runner.run(self.profiles.merge(deltas))

    def profile(self, customer_id: str) -> bytes | None:
        stored: bytes | None = self.runner.run(self._get(customer_id))
        return stored

    async def _get(self, customer_id: str) -> bytes | None:
        found: bytes | None = await self.client.get(profile_key("lm", customer_id))
        return found

    def empty(self) -> None:
        self.runner.run(self._flush())

    async def _flush(self) -> None:
        await self.client.flushdb()


@pytest.fixture(scope="module")
def emptied(store: EmbeddedStore) -> Iterator[Store]:
    it = Store(store.url)
    yield it
    it.runner.run(it.client.aclose())
    it.runner.close()


def deliver(store: Store, batches: list[tuple[Source, list[Record]]]) -> None:
    for source, batch in batches:
        outcome = process(batch, source, SCORER, LIMITS, 16_384, NOW)
        assert not outcome.dead
        store.merge(outcome.deltas)


def expected(history: dict[Source, list[Record]]) -> dict[str, dict[str, object]]:
    items = [item for source, of_source in history.items() for item in scored(of_source, source, SCORER, LIMITS, NOW)]
    return oracle.profiles(items, SCORER.label_refs, SCORER.version)


common = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(common, max_examples=300)
@given(st.data())
def test_any_cut_repeat_and_restart_gives_the_oracles_profile_byte_for_byte(
    emptied: Store, data: st.DataObject
) -> None:
    emptied.empty()
    history = data.draw(histories())
    deliver(emptied, data.draw(deliveries(history)))
    wanted = expected(history)
    for customer in ("ada", "bo", "陈"):
        stored = emptied.profile(customer)
        if customer not in wanted:
            assert stored is None
            continue
        assert stored is not None
        found = schema.unfold(stored)
        assert schema.canonical(found) == schema.canonical(wanted[customer]), oracle.difference(found, wanted[customer])


@settings(common, max_examples=200)
@given(st.data())
def test_any_order_of_arrival_gives_the_same_scores_and_orders_to_1e_9(emptied: Store, data: st.DataObject) -> None:
    history = data.draw(histories())
    shuffled = {
        source: records(source, [json.loads(record.value or b"") for record in data.draw(st.permutations(of_source))])
        for source, of_source in history.items()
    }
    seen = []
    for version in (history, shuffled):
        emptied.empty()
        deliver(emptied, [(source, of_source) for source, of_source in version.items() if of_source])
        seen.append({c: comparable(emptied.profile(c)) for c in ("ada", "bo", "陈")})
    assert not oracle.difference(seen[0], seen[1])


def comparable(stored: bytes | None) -> dict[str, object]:
    """What order of arrival must not change: not the rings, provenance and fences, which tell of it."""
    if stored is None:
        return {}
    profile = schema.unfold(stored)
    sums = {
        f"{source}/{facet}/{label}": values[:3]
        for source, state in profile["s"].items()
        for facet, (_, labels) in state.get("l", {}).items()
        for label, values in labels.items()
    }
    return {
        "sums": sums,
        "orders": profile.get("o", {}),
        "counts": {s: (v["n"], v["t"]) for s, v in profile["s"].items()},
    }


@settings(common, max_examples=100)
@given(st.data())
def test_the_published_deltas_alone_rebuild_the_store(emptied: Store, data: st.DataObject) -> None:
    history = data.draw(histories())
    batches = data.draw(deliveries(history))
    published = []
    emptied.empty()
    for source, batch in batches:
        deltas = process(batch, source, SCORER, LIMITS, 16_384, NOW).deltas
        published += [delta.data for delta in deltas]
        emptied.merge(deltas)
    before = {c: emptied.profile(c) for c in ("ada", "bo", "陈")}
    emptied.empty()
    emptied.merge([Delta.from_bytes(data) for data in published])
    for customer, stored in before.items():
        again = emptied.profile(customer)
        assert (again is None) == (stored is None)
        if stored is not None and again is not None:
            assert schema.canonical(schema.unfold(again)) == schema.canonical(schema.unfold(stored))
