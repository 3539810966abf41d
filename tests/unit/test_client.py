"""The SDK over a real store: both clients do the same, fail by name and in time, and import little."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from math import exp, log, log2
from typing import Any

import pytest
import redis
import redis.asyncio

from streaming.client import (
    AsyncProfileClient,
    InvalidArgument,
    LimnerError,
    ProfileClient,
    ProfileUnreadable,
    StoreUnavailable,
    UnknownFacet,
)
from streaming.embedded.store import Store
from streaming.events import Limits, Position, Record, Source
from streaming.pipeline import process
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from streaming.profiles.schema import PROFILE_VERSION, pack
from streaming.profiles.store import ProfileStore
from tests import stored
from tests.fakes import DAY_MS, HashScorer

HALF_LIFE = 7 * 86_400_000


class Both:
    """`client(method, ...)` on the client of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, url: str, method: str, *args: Any, timeout_s: float = 5.0, **kwargs: Any) -> Any:
        if self.kind == "sync":
            with ProfileClient(url, namespace="t", timeout_s=timeout_s) as client:
                return getattr(client, method)(*args, **kwargs)

        async def call() -> Any:
            async with AsyncProfileClient(url, namespace="t", timeout_s=timeout_s) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(call())


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


@pytest.fixture
def filled(redis_url: str) -> Iterator[str]:
    now = time.time() * 1000
    with redis.Redis.from_url(redis_url) as store:
        for customer_id in ("a", "b", "客户 7/x"):
            chat = {
                "n": 1,
                "t": int(now),
                "r": [1],
                "l": {"interests": [HALF_LIFE, {"tea": [1, int(now), 1, "m", []]}]},
            }
            store.set(profile_key("t", customer_id), stored.profile(customer_id, int(now), {"chat": chat}))
        store.hset(half_lives_key("t"), "interests", HALF_LIFE)
        weights = {"a": 3.0, "b": 0.5, "客户 7/x": 1.0}
        store.zadd(
            audience_key("t", "interests", "tea"),
            {customer_id: log2(weight) + now / HALF_LIFE for customer_id, weight in weights.items()},
        )
    yield redis_url


def test_get_reads_a_profile_or_none(client: Both, filled: str) -> None:
    profile = client(filled, "get", "客户 7/x")
    assert profile.customer_id == "客户 7/x"
    assert profile.labels[0].strength == pytest.approx(1 - exp(-1), abs=1e-4)
    assert client(filled, "get", "nobody") is None


def test_get_many_keeps_the_order_in_one_round_trip(client: Both, filled: str) -> None:
    with redis.Redis.from_url(filled) as store:
        store.config_resetstat()
        found = client(filled, "get_many", ["b", "nobody", "a", "b"])
        calls = store.info("commandstats")
    assert list(found) == ["b", "nobody", "a"]
    assert found["nobody"] is None
    assert found["a"].customer_id == "a"
    assert calls["cmdstat_mget"]["calls"] == 1
    assert "cmdstat_get" not in calls
    assert client(filled, "get_many", []) == {}


def test_audience_is_ordered_cut_and_as_of_now(client: Both, filled: str) -> None:
    expected = [("a", 1 - exp(-3)), ("客户 7/x", 1 - exp(-1)), ("b", 1 - exp(-0.5))]
    found = client(filled, "audience", "interests", "tea")
    assert [member for member, _ in found] == [member for member, _ in expected]
    assert [strength for _, strength in found] == pytest.approx([strength for _, strength in expected], abs=1e-4)
    assert [member for member, _ in client(filled, "audience", "interests", "tea", limit=2)] == ["a", "客户 7/x"]
    assert [m for m, _ in client(filled, "audience", "interests", "tea", min_strength=0.6)] == ["a", "客户 7/x"]
    assert client(filled, "audience", "interests", "coffee") == []


def test_an_audience_agrees_with_the_threshold_on_scores(filled: str, client: Both) -> None:
    """score >= log2(-ln(1-s)) + T/half_life, worked out from the other side."""
    least = 0.5
    with redis.Redis.from_url(filled) as store:
        floor = log2(-log(1 - least)) + time.time() * 1000 / HALF_LIFE
        by_score = store.zrange(audience_key("t", "interests", "tea"), "+inf", floor, desc=True, byscore=True)
    found = client(filled, "audience", "interests", "tea", min_strength=least)
    assert [member.encode() for member, _ in found] == by_score


def test_an_audience_far_from_now_is_neither_an_overflow_nor_an_error(client: Both, filled: str) -> None:
    with redis.Redis.from_url(filled) as store:
        store.zadd(audience_key("t", "interests", "odd"), {"future": 1e9, "past": -1e9})
    assert client(filled, "audience", "interests", "odd") == [("future", 1.0), ("past", 0.0)]


def test_an_unknown_facet_is_no_empty_audience(client: Both, filled: str) -> None:
    with pytest.raises(UnknownFacet, match="'intrests' is not known"):
        client(filled, "audience", "intrests", "tea")


@pytest.mark.parametrize(
    ("method", "args", "field"),
    [
        ("get", ("",), "customer_id"),
        ("get", ("a{b}",), "customer_id"),
        ("get", ("x" * 129,), "customer_id"),
        ("get", ("a\n",), "customer_id"),
        ("get", ("\ud800",), "customer_id"),
        ("get", (7,), "customer_id"),
        ("get_many", ("abc",), "ids"),
        ("get_many", (["a", "b}"],), "ids[1]"),
        ("audience", ("f", "l", 0), "limit"),
        ("audience", ("f", "l", 10_001), "limit"),
        ("audience", ("f", "l", 1, 1.0), "min_strength"),
        ("audience", ("f", "l", 1, float("nan")), "min_strength"),
        ("audience", ("", "l"), "facet"),
        ("audience", ("f", "{"), "label"),
    ],
)
def test_a_wrong_argument_is_named(client: Both, redis_url: str, method: str, args: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client(redis_url, method, *args)
    assert caught.value.field == field
    assert isinstance(caught.value, LimnerError)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_client_that_would_wait_for_ever_is_refused(client: Both, redis_url: str, timeout_s: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout_s"):
        client(redis_url, "get", "a", timeout_s=timeout_s)


def test_a_url_of_something_else_is_refused(client: Both) -> None:
    with pytest.raises(InvalidArgument, match="url"):
        client("http://127.0.0.1", "get", "a")


def test_an_absent_store_is_named_without_its_password(client: Both) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        port = unused.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=rf"Redis at 127\.0\.0\.1:{port} ") as caught:
            client(f"redis://user:secret@127.0.0.1:{port}/0", "get", "a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("method", ["get", "get_many", "audience", "ping"])
def test_a_silent_store_is_given_up_in_time(client: Both, method: str) -> None:
    args = {"get": ("a",), "get_many": (["a"],), "audience": ("f", "l"), "ping": ()}[method]
    with Store.start() as store:
        os.kill(store.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.2 s"):
            client(store.url, method, *args, timeout_s=0.2)
        assert time.monotonic() - started < 1.0
        os.kill(store.pid, signal.SIGCONT)


def test_a_store_that_was_restarted_is_found_again_by_the_same_client() -> None:
    with Store.start() as store, ProfileClient(store.url) as client:
        assert client.get("a") is None
        store.restart()
        store.wait_answering()
        assert client.get("a") is None


def test_a_newer_profile_is_refused(client: Both, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.set(profile_key("t", "a"), pack({"v": PROFILE_VERSION + 1}))
    with pytest.raises(ProfileUnreadable, match="upgrade limner"):
        client(redis_url, "get", "a")


def test_a_key_of_another_type_is_the_stores_fault(client: Both, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.lpush(profile_key("t", "a"), "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        client(redis_url, "get", "a")


def test_what_the_merge_script_writes_is_read_and_audiences_agree_with_profiles(client: Both, redis_url: str) -> None:
    now = int(time.time() * 1000)
    merge(redis_url, now)
    profiles = client(redis_url, "get_many", [f"c{i}" for i in range(4)])
    shown: dict[tuple[str, str], dict[str, float]] = {}
    for customer_id, profile in profiles.items():
        assert profile.events == {"chat": 30, "order": 10}
        assert profile.orders is not None
        assert profile.orders.money["GBP"].spent == profile.orders.placed * 3
        assert (profile.orders.placed, profile.orders.cancelled) == (8, 2)
        assert [(product.sku, product.orders) for product in profile.orders.top_products] == [("s", 8)]
        assert profile.sentiment is not None
        for label in profile.labels:
            shown.setdefault((label.facet, label.label), {})[customer_id] = label.strength
    assert shown
    for (facet, label), members in shown.items():
        # each is read at its own moment
        assert dict(client(redis_url, "audience", facet, label)) == pytest.approx(members, abs=1e-5)


def merge(url: str, now: int) -> None:
    """30 chats and 10 orders of each of 4 customers over 40 days, through the pipeline and the store."""
    common = [{"customer_id": f"c{i}", "ts": now - 40 * DAY_MS + n * DAY_MS} for n in range(10) for i in range(4)]
    lines = [{"sku": "s", "description": "words 3", "quantity": 2, "unit_price": 1.5}]
    orders = [
        {**it, "event_id": f"o{n}", "order_id": str(n), "currency": "GBP", "lines": lines,
         "status": "cancelled" if n % 40 >= 32 else "placed"}
        for n, it in enumerate(common)
    ]  # fmt: skip
    chats = [{**it, "event_id": f"m{n}", "text": f"words {n}"} for n, it in enumerate(common * 3)]

    async def run() -> None:
        async with redis.asyncio.Redis.from_url(url) as connection:
            store = ProfileStore(connection, "t")
            sources: list[tuple[Source, list[dict[str, Any]]]] = [("chat", chats), ("order", orders)]
            for source, events in sources:
                records = [
                    Record(Position(source, 0, "e", offset), None, json.dumps(event).encode(), (), now)
                    for offset, event in enumerate(events)
                ]
                outcome = process(records, source, HashScorer(), Limits(1_000_000, 0), 1_000, now)
                assert not outcome.dead
                await store.merge(outcome.deltas)

    asyncio.run(run())


def test_importing_the_client_imports_little() -> None:
    program = (
        "import sys, streaming.client\n"
        "print([m for m in ('torch', 'faust', 'kafka', 'confluent_kafka', 'aiokafka', 'pydantic', 'numpy',"
        " 'structlog', 'prometheus_client', 'blacksheep', 'stdnum', 'yaml') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
