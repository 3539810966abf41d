"""Links: in whatever order events and controls come, a look-up shows the union, and undone links leave nothing."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.controls.apply import apply
from streaming.controls.erasure import Eraser
from streaming.controls.store import ControlStore
from streaming.controls.types import Alias, Block, Consent, Control, Merge, Unblock, Unmerge
from streaming.embedded.store import Store as EmbeddedStore
from streaming.errors import InvalidEvent
from streaming.events.types import Position, Record, Source
from streaming.pipeline import process
from streaming.profiles import fold, schema
from streaming.profiles.store import ProfileStore
from streaming.profiles.view import Profile
from tests import oracle, stored
from tests.integration.test_merge_property import LIMITS, NOW, SCORER, histories
from tests.reading import scored

IDS = ("ada", "bo", "陈")
LATER = NOW + 86_400_000


class Store:
    """A store that each example finds empty."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.client = redis.asyncio.from_url(url)
        self.profiles = ProfileStore(self.client, "lm")
        self.controls = ControlStore(self.client, "lm")

    def empty(self) -> None:
        self.runner.run(self._flush())

    async def _flush(self) -> None:
        await self.client.flushdb()

    def merge(self, source: Source, batch: Sequence[Record]) -> None:
        deltas = process(batch, source, SCORER, LIMITS, 16_384, NOW).deltas
        self.runner.run(self.profiles.merge(deltas))

    def control(self, *controls: Control) -> None:
        for control in controls:
            self.runner.run(apply(control, self.controls, no_eraser))

    def raw(self, customer_id: str) -> bytes | None:
        return self.runner.run(self.controls.profile(customer_id))

    def look_up(self, customer_id: str, at_ms: int = LATER) -> Profile | None:
        """As a client does."""
        known = {customer_id: self.raw(customer_id)}
        while missing := fold.missing(customer_id, known):
            known |= {other: self.raw(other) for other in missing}
        return fold.fold(customer_id, known, at_ms)

    def state(self) -> dict[bytes, bytes]:
        return self.runner.run(self._state())

    async def _state(self) -> dict[bytes, bytes]:
        return {key: schema.canonical(schema.unfold(await self.client.get(key) or b"")) async for key in
                self.client.scan_iter("lm:*:p")}  # fmt: skip


no_eraser: Eraser = None  # type: ignore[assignment]  # no control here asks for one


@pytest.fixture(scope="module")
def emptied(store: EmbeddedStore) -> Iterator[Store]:
    it = Store(store.url)
    yield it
    it.runner.run(it.client.aclose())
    it.runner.close()


@pytest.fixture
def held(emptied: Store) -> Store:
    emptied.empty()
    return emptied


common = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
pairs = st.permutations(IDS).map(lambda it: it[:2])


def linking(pair: Sequence[str], number: int, linked: bool) -> Control:
    kind = (Merge if number % 2 else Alias) if linked else Unmerge
    return kind(event_id=f"c{number}", ts=NOW + number, customer_id=pair[0], other=pair[1])


def deliver(
    store: Store, history: Mapping[Source, Sequence[Record]], controls: Sequence[Control], data: st.DataObject
) -> None:
    """Events in order within their source; controls anywhere between, in any order, some twice."""
    if controls:
        repeats = st.lists(st.sampled_from(controls), max_size=3)
        controls = [*data.draw(st.permutations(controls)), *data.draw(repeats)]
    controls = list(controls)
    at = dict.fromkeys(history, 0)
    while (unread := [source for source in history if at[source] < len(history[source])]) or controls:
        if controls and (not unread or data.draw(st.booleans())):
            store.control(controls.pop(0))
            continue
        source = data.draw(st.sampled_from(unread))
        size = data.draw(st.integers(1, 9))
        store.merge(source, history[source][at[source] : at[source] + size])
        at[source] += size


def unlinked(raw: bytes | None) -> bytes | None:
    """A stored profile without its registers; None if it is nothing but them."""
    if raw is None:
        return None
    content = schema.unfold(raw)
    content.pop("i", None)
    return schema.canonical(content) if "s" in content else None


@settings(common, max_examples=60)
@given(st.data())
def test_undone_links_leave_every_id_as_if_it_had_never_been_linked(emptied: Store, data: st.DataObject) -> None:
    history = data.draw(histories())
    emptied.empty()
    deliver(emptied, history, [], data)
    never = {it: (unlinked(emptied.raw(it)), emptied.look_up(it)) for it in IDS}

    linked = data.draw(st.lists(pairs, max_size=5))
    undone = [linking(pair, 100 + number, False) for number, pair in enumerate(linked)]
    emptied.empty()
    deliver(emptied, history, [*(linking(pair, n, True) for n, pair in enumerate(linked)), *undone], data)
    for it in IDS:
        profile, view = never[it]
        assert unlinked(emptied.raw(it)) == profile
        assert msgspec.json.encode(emptied.look_up(it)) == msgspec.json.encode(view)


@settings(common, max_examples=60)
@given(st.data())
def test_linked_ids_show_the_oracles_profile_of_all_their_events(emptied: Store, data: st.DataObject) -> None:
    history = data.draw(histories())
    linked = data.draw(st.lists(pairs, min_size=1, max_size=4))
    emptied.empty()
    deliver(emptied, history, [linking(pair, number, True) for number, pair in enumerate(linked)], data)
    for asked in IDS:
        cluster = together(asked, linked)
        wanted = profile_of(history, cluster)
        found = emptied.look_up(asked)
        if wanted is None:
            assert found is None
            continue
        assert found is not None and found.customer_id == asked
        assert sorted(found.linked) == sorted(it for it in cluster - {asked} if emptied.raw(it) is not None)
        assert not oracle.difference(comparable(found), comparable(wanted))


@settings(common, max_examples=40)
@given(st.data())
def test_controls_in_any_order_and_number_leave_the_same_state(emptied: Store, data: st.DataObject) -> None:
    purposes = st.dictionaries(st.sampled_from(["analytics", "ads"]), st.booleans(), min_size=1)
    one = st.one_of(
        st.tuples(pairs, st.booleans()).map(lambda it: lambda n: linking(it[0], n, it[1])),
        st.tuples(st.sampled_from(IDS), purposes).map(
            lambda it: lambda n: Consent(event_id=f"c{n}", ts=NOW + n // 3, customer_id=it[0], purposes=it[1])
        ),
        st.tuples(st.sampled_from(IDS), st.sampled_from([Block, Unblock])).map(
            lambda it: lambda n: it[1](event_id=f"c{n}", ts=NOW + n // 3, customer_id=it[0])
        ),
    )
    controls = [make(number) for number, make in enumerate(data.draw(st.lists(one, max_size=10)))]
    states = []
    for _ in range(2):
        emptied.empty()
        deliver(emptied, {}, controls, data)
        states.append(emptied.state())
    assert states[0] == states[1]


def together(asked: str, linked: Sequence[Sequence[str]]) -> set[str]:
    cluster = {asked}
    for _ in IDS:
        cluster |= {it for pair in linked if cluster & set(pair) for it in pair}
    return cluster


def profile_of(history: Mapping[Source, Sequence[Record]], cluster: set[str]) -> Profile | None:
    """The oracle's, of the events of all these ids as if they were one's."""
    items = [it for source, records in history.items() for it in scored(records, source, SCORER, LIMITS, NOW)]
    as_one = [
        it._replace(event=msgspec.structs.replace(it.event, customer_id="one"))
        for it in items
        if it.event.customer_id in cluster
    ]
    found = oracle.profiles(as_one, SCORER.label_refs, SCORER.version)
    return Profile.from_bytes(stored.folded(found["one"] | {"u": NOW}), LATER) if found else None


def comparable(profile: Profile) -> Any:
    """Not the id and the links; nor the newest event ids, which tell the order of arrival, that two ids don't have."""
    fields = msgspec.to_builtins(profile)
    for label in fields["labels"]:
        label["event_ids"] = len(label["event_ids"])
    fields["labels"] = {f"{it['facet']}/{it['label']}": it for it in fields["labels"]}
    if fields["orders"]:
        fields["orders"]["top_products"] = {it["sku"]: it for it in fields["orders"]["top_products"]}
    return {name: value for name, value in fields.items() if name not in ("customer_id", "linked", "updated_ms")}


def test_a_shared_id_links_nobody_until_it_is_unblocked(held: Store) -> None:
    held.control(Merge(event_id="m1", ts=1, customer_id="ada", other="tablet"))
    held.control(Merge(event_id="m2", ts=2, customer_id="bo", other="tablet"))
    assert cluster_of(held, "ada") == ["tablet", "bo"]
    held.control(Block(event_id="b", ts=3, customer_id="tablet"))
    assert [cluster_of(held, it) for it in ("ada", "bo", "tablet")] == [[], [], []]
    held.control(Unblock(event_id="u", ts=4, customer_id="tablet"))
    assert cluster_of(held, "bo") == ["tablet", "ada"]


def cluster_of(store: Store, asked: str) -> list[str]:
    known = {asked: store.raw(asked)}
    while missing := fold.missing(asked, known):
        known |= {other: store.raw(other) for other in missing}
    return [it for it in known if it in fold._walk(asked, known) and it != asked]


def test_a_look_up_reads_no_more_than_a_persons_ids_and_the_oldest_links_first(held: Store) -> None:
    for number in range(schema.MAX_LINKS):
        held.control(Merge(event_id=f"m{number}", ts=100 - number, customer_id="hub", other=f"id-{number:02}"))
    newest_first = [f"id-{number:02}" for number in reversed(range(schema.MAX_LINKS))]
    assert cluster_of(held, "hub") == newest_first[: fold.MAX_CLUSTER - 1]
    with pytest.raises(InvalidEvent, match="say so with a `block`"):
        held.control(Merge(event_id="more", ts=200, customer_id="hub", other="too-many"))
    assert held.raw("too-many") is None, "half a link was left"


def test_an_id_without_links_costs_no_second_read(held: Store) -> None:
    held.control(Consent(event_id="c", ts=1, customer_id="ada", purposes={"ads": False}))
    assert fold.missing("ada", {"ada": held.raw("ada")}) == []
    held.control(Merge(event_id="m", ts=1, customer_id="ada", other="bo"))
    assert fold.missing("ada", {"ada": held.raw("ada")}) == ["bo"]
    held.control(Unmerge(event_id="u", ts=2, customer_id="bo", other="ada"))
    assert fold.missing("ada", {"ada": held.raw("ada")}) == []


def test_of_two_linked_ids_the_later_word_on_consent_counts(held: Store) -> None:
    held.control(Merge(event_id="m", ts=1, customer_id="ada", other="bo"))
    held.control(Consent(event_id="1", ts=1, customer_id="ada", purposes={"ads": True, "training": False}))
    held.control(Consent(event_id="2", ts=2, customer_id="bo", purposes={"ads": False}))
    held.merge("chat", [chat_of("ada"), chat_of("bo")])
    for asked in ("ada", "bo"):
        found = held.look_up(asked)
        assert found is not None and found.consent == {"ads": False, "training": False}
        assert found.events == {"chat": 2}


def chat_of(customer_id: str) -> Record:
    event = {"event_id": customer_id, "customer_id": customer_id, "ts": NOW, "text": "words 1"}
    return Record(Position("chat-events", 0, "e1", ord(customer_id[0])), None, json.dumps(event).encode(), (), NOW)


def test_strengths_add_up_in_event_time(held: Store) -> None:
    """By hand: 0.8 a half-life ago and 0.5 now."""
    half = 30 * 86_400_000
    sums = {
        it: {"chat": {"n": 1, "t": t, "l": {"interests": [half, {"tea": [w, t, 1, "m", [f"e-{it}"]]}]}}}
        for it, w, t in (("ada", 0.8, NOW - half), ("bo", 0.5, NOW))
    }
    link = {"ada": {"bo": [True, 1, "t"]}, "bo": {"ada": [True, 1, "t"]}}
    known = {it: stored.profile(it, NOW, sums[it], i=link[it]) for it in ("ada", "bo")}
    found = fold.fold("bo", known, NOW)
    assert found is not None and math.isclose(found.labels[0].strength, 1 - math.exp(-0.9), rel_tol=1e-12)
    assert found.labels[0].event_ids == ["e-bo", "e-ada"]
    scores = [fold.audience_scores(known[it])["interests", "tea"] for it in known]
    assert math.isclose(scores[1], math.log2(0.5) + NOW / half)
