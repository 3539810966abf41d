"""The stand-ins have the clients' methods, argument for argument, and behave as they do."""

from __future__ import annotations

import asyncio
import inspect
from decimal import Decimal
from typing import Any

import pytest

from streaming.client import (
    AsyncProfileClient,
    ConsentDenied,
    InvalidArgument,
    NotYetVisible,
    ProfileClient,
    StoreUnavailable,
    Token,
    UnknownFacet,
)
from streaming.client.testing import FakeAsyncProfileClient, FakeProfileClient
from streaming.client.tokens import encode


def signatures(kind: type) -> dict[str, inspect.Signature]:
    wanted = ("__enter__", "__exit__", "__aenter__", "__aexit__")
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name in wanted
    }


@pytest.mark.parametrize(
    ("real", "fake"), [(ProfileClient, FakeProfileClient), (AsyncProfileClient, FakeAsyncProfileClient)]
)
def test_real_and_fake_have_the_same_methods(real: type, fake: type) -> None:
    offered = signatures(fake)
    offered.pop("put", None)
    assert offered == signatures(real)
    assert {name for name in offered if inspect.iscoroutinefunction(getattr(fake, name))} == {
        name for name in offered if inspect.iscoroutinefunction(getattr(real, name))
    }


def test_both_clients_have_the_same_methods() -> None:
    def plain(kind: type) -> dict[str, inspect.Signature]:
        return {name.replace("__a", "__"): it for name, it in signatures(kind).items()}

    assert plain(AsyncProfileClient) == plain(ProfileClient)
    assert inspect.signature(AsyncProfileClient) == inspect.signature(ProfileClient)


class Either:
    def __init__(self, kind: str) -> None:
        self._fake: Any = FakeProfileClient() if kind == "sync" else FakeAsyncProfileClient()
        self.put = self._fake.put

    def fail(self, error: Any) -> None:
        self._fake.error = error

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self._fake, name)(*args, **kwargs)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

        return call


@pytest.fixture(params=["sync", "async"])
def fake(request: pytest.FixtureRequest) -> Either:
    return Either(request.param)


def test_what_was_put_is_read(fake: Either) -> None:
    money = {"GBP": {"spent": "12.50"}}
    fake.put(
        "c1",
        labels={"interests/tea": 0.8, "interests/cups": 0.9, "needs/help": 0.01},
        orders={"placed": 3, "money": money},
    )
    profile = fake.get("c1")
    assert [(it.facet, it.label, it.strength, it.freshness) for it in profile.labels] == [
        ("interests", "cups", 0.9, "FRESH"),
        ("interests", "tea", 0.8, "FRESH"),
        ("needs", "help", 0.01, "EXPIRED"),
    ]
    assert profile.orders.placed == 3
    assert profile.orders.money["GBP"].spent == Decimal("12.50")
    assert fake.get("c2") is None
    assert fake.get_many(["c2", "c1"]) == {"c2": None, "c1": profile}
    explained = fake.explain("c1").labels[0]
    assert (explained.label, explained.sources[0].source, explained.sources[0].event_ids) == ("cups", "chat", ["m1"])
    assert fake.explain("c2") is None
    fake.ping()
    fake.close()


def test_consent_is_asked_as_the_real_ones_do(fake: Either) -> None:
    fake.put("c1", consent={"ads": False})
    assert fake.get("c1").consent == {"ads": False}
    assert fake.get("c1", purpose="analytics").customer_id == "c1"
    with pytest.raises(ConsentDenied):
        fake.get("c1", purpose="ads")
    with pytest.raises(ConsentDenied):
        fake.wait_for(Token("c1", "t", 0, 0), 1, purpose="ads")
    with pytest.raises(InvalidArgument):
        fake.get("c1", purpose="add")
    for kind in (FakeProfileClient, FakeAsyncProfileClient):
        with pytest.raises(InvalidArgument):
            kind(consent_default={"add": True})
    strict = FakeProfileClient(consent_default={"ads": False})
    strict.put("c2")
    with pytest.raises(ConsentDenied):
        strict.get("c2", purpose="ads")


def test_audiences_page_as_the_real_ones_do(fake: Either) -> None:
    for at in range(7):
        fake.put(f"c{at}", labels={"interests/tea": 0.5 if at < 4 else at / 10})
    everyone = list(fake.audience("interests", "tea"))
    assert [member for member, _ in everyone] == ["c6", "c5", "c3", "c2", "c1", "c0", "c4"]
    paged, cursor = [], None
    while True:
        page = fake.audience("interests", "tea", limit=3, cursor=cursor)
        paged += page
        if (cursor := page.cursor) is None:
            break
    assert paged == everyone
    assert len(fake.audience("interests", "tea", min_strength=0.5)) == 6
    assert fake.audience("interests", "coffee") == []
    with pytest.raises(UnknownFacet):
        fake.audience("needs", "help")


def test_waiting_ends_at_once(fake: Either) -> None:
    token = Token("c1", "chat-events", 0, 7)
    with pytest.raises(NotYetVisible):
        fake.wait_for(token, 60)
    fake.put("c1")
    assert fake.wait_for(encode(token), 60).customer_id == "c1"


def test_wrong_arguments_and_a_store_that_is_away(fake: Either) -> None:
    token = Token("c", "t", 0, 0)
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("get", ("a{b}",)), ("get_many", ("abc",)), ("audience", ("f", "l", 0)), ("explain", ("",)),
        ("wait_for", ("x", 1)), ("wait_for", (token, -1)), ("audience", ("f", "l", 1, 0.0, "x")),
    ]  # fmt: skip
    for method, args in wrong:
        with pytest.raises(InvalidArgument):
            getattr(fake, method)(*args)
    for arguments in (
        {"labels": {"tea": 0.5}},
        {"labels": {"interests/tea": 1.5}},
        {"orders": {"plaecd": 1}},
        {"orders": {"placed": "many"}},
    ):
        with pytest.raises(InvalidArgument):
            fake.put("c1", **arguments)
    fake.fail(StoreUnavailable("away"))
    for method, args in (
        ("get", ("c1",)),
        ("get_many", (["c1"],)),
        ("audience", ("f", "l")),
        ("explain", ("c1",)),
        ("ping", ()),
    ):
        with pytest.raises(StoreUnavailable, match="away"):
            getattr(fake, method)(*args)
