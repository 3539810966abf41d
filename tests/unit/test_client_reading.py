"""Beyond one question: waiting for an event, explaining, paging, coming back after failures, and a light install."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from math import log2
from typing import Any

import pytest
import redis

from streaming.client import ConsentDenied, InvalidArgument, NotYetVisible, StoreUnavailable, Token
from streaming.client.tokens import encode
from streaming.embedded.store import Store
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from streaming.profiles.schema import pack
from tests import stored
from tests.clients import Both

HALF_LIFE = 7 * 86_400_000
TOKEN = Token("a", "chat-events", 2, 50)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(kind: str, redis_url: str) -> Iterator[Both]:
    with Both(kind, redis_url, timeout_s=2.0) as opened:
        yield opened


def put(url: str, customer_id: str, fence: dict[str, int], sources: dict[str, Any] | None = None) -> None:
    content = {"v": 1, "id": customer_id, "u": 1, "f": fence, "s": sources or {"chat": {"n": 1, "t": 1}}}
    with redis.Redis.from_url(url) as store:
        store.set(profile_key("t", customer_id), stored.folded(content))


# --- read your writes -------------------------------------------------------------------------------


def test_waiting_ends_as_soon_as_the_profile_holds_the_event(client: Both, redis_url: str) -> None:
    put(redis_url, "a", {"chat-events/2/e": 49, "chat-events/1/e": 99})
    merge = threading.Timer(0.15, put, (redis_url, "a", {"chat-events/2/e": 51}))
    merge.start()
    started = time.monotonic()
    assert client.wait_for(encode(TOKEN), 5.0).customer_id == "a"
    assert 0.1 < time.monotonic() - started < 1.0
    merge.join()
    started = time.monotonic()
    assert client.wait_for(TOKEN, 0).customer_id == "a"
    assert time.monotonic() - started < 0.1


def test_waiting_is_bounded_and_says_for_what(client: Both, redis_url: str) -> None:
    for fence in (None, {"chat-events/2/e": 49}):
        if fence:
            put(redis_url, "a", fence)
        started = time.monotonic()
        with pytest.raises(NotYetVisible, match=r"'a' did not hold chat-events/2 offset 50 within 0\.1 s"):
            client.wait_for(TOKEN, 0.1)
        assert 0.09 < time.monotonic() - started < 0.5


def test_waiting_asks_a_bounded_number_of_times(client: Both, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.config_resetstat()
        with pytest.raises(NotYetVisible):
            client.wait_for(TOKEN, 0.5)
        assert store.info("commandstats")["cmdstat_get"]["calls"] <= 5 + 0.5 / 0.02


@pytest.mark.parametrize(
    ("token", "timeout_s", "field"), [("abc", 1, "token"), (TOKEN, -1, "timeout_s"), (TOKEN, float("nan"), "timeout_s")]
)
def test_waiting_for_nonsense_is_refused(client: Both, token: Any, timeout_s: float, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.wait_for(token, timeout_s)
    assert caught.value.field == field


# --- linked ids -------------------------------------------------------------------------------------


def link(url: str, one: str, other: str, count: int, *, linked: bool = True) -> None:
    content = {"v": 1, "id": one, "u": 1, "f": {"x/0/e": count}, "s": {"chat": {"n": count, "t": 1}}}
    with redis.Redis.from_url(url) as store:
        store.set(profile_key("t", one), stored.folded({**content, "i": {other: [linked, 1, "k"]}}))


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_linked_ids_are_read_as_one_person(kind: str, redis_url: str, cache_mb: int) -> None:
    link(redis_url, "phone", "laptop", 3)
    link(redis_url, "laptop", "phone", 4)
    put(redis_url, "other", {"x/0/e": 1})
    with Both(kind, redis_url, timeout_s=2.0, cache_mb=cache_mb) as client:
        client.get("other")
        client.pause(0.3)
        for count in (4, 5):
            link(redis_url, "laptop", "phone", count)
            client.pause(0.05)
            for found in (client.get("phone"), client.get_many(["other", "phone", "laptop", "nobody"])["phone"]):
                assert (found.customer_id, found.linked, found.events) == ("phone", ["laptop"], {"chat": 3 + count})
        assert client.wait_for(Token("phone", "x", 0, 3), 1.0).events == {"chat": 8}
        link(redis_url, "phone", "laptop", 3, linked=False)
        client.pause(0.05)
        assert client.get("phone").events == {"chat": 3}


def test_who_only_said_yes_has_no_profile(client: Both, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.set(profile_key("t", "a"), pack({"v": 1, "id": "a", "c": {"analytics": [True, 1, "k"]}}))
    assert client.get("a") is None
    assert client.get_many(["a"]) == {"a": None}


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_a_purpose_is_served_only_where_it_is_granted(kind: str, redis_url: str, cache_mb: int) -> None:
    said = {"ads": [False, 1, "k"], "training": [True, 1, "k"]}
    raw = stored.profile("a", 1, {"chat": {"n": 1, "t": 1}}, c=said)
    with redis.Redis.from_url(redis_url) as store:
        store.set(profile_key("t", "a"), raw)
    defaults = {"training": False, "analytics": False}
    with Both(kind, redis_url, timeout_s=2.0, cache_mb=cache_mb, consent_default=defaults) as client:
        for _ in range(3):  # the first to watch, the second to keep, the third from what is kept
            for purpose in (None, "training", "personalisation"):
                assert client.get("a", purpose=purpose).customer_id == "a"
            for purpose in ("ads", "analytics"):
                with pytest.raises(ConsentDenied, match=f"'a' has not granted the purpose {purpose}") as caught:
                    client.get("a", purpose=purpose)
                assert (caught.value.customer_id, caught.value.purpose) == ("a", purpose)
            client.pause(0.3)
        assert client.get("nobody", purpose="ads") is None
        token = Token("a", "t", 0, 7)
        assert client.wait_for(token, 1.0, purpose="training").customer_id == "a"
        with pytest.raises(ConsentDenied):
            client.wait_for(token, 1.0, purpose="ads")


def test_a_misspelt_purpose_is_refused(client: Both, kind: str, redis_url: str) -> None:
    put(redis_url, "a", {"chat-events/2/e": 51})
    for method, args in (("get", ("nobody",)), ("get", ("a",)), ("wait_for", (TOKEN, 0.1))):
        with pytest.raises(InvalidArgument, match="purpose: must be one of analytics, personalisation, ads, training"):
            getattr(client, method)(*args, purpose="add")
    for defaults in ({"add": False}, {"ads": "denied"}):
        with pytest.raises(InvalidArgument, match="consent_default: "):
            Both(kind, redis_url, consent_default=defaults)


# --- why --------------------------------------------------------------------------------------------


def test_an_explanation_names_sources_events_and_models_that_add_up(client: Both, redis_url: str) -> None:
    now = int(time.time() * 1000)
    chat = {
        "n": 3,
        "t": now,
        "l": {"interests": [HALF_LIFE, {"tea": [2.0, now - HALF_LIFE, 3, "m-2", ["c1", "c2", "c3"]]}]},
    }
    order = {
        "n": 1,
        "t": now,
        "l": {"interests": [HALF_LIFE, {"tea": [0.5, now, 1, "m-1", ["o1"]], "cups": [0.1, now, 1, "m-1", []]}]},
    }
    put(redis_url, "a", {"chat-events/2/e": 49}, {"chat": chat, "order": order})
    explanation = client.explain("a")
    profile = client.get("a")
    assert explanation.customer_id == "a"
    assert explanation.merged == {"chat-events/2/e": 49}
    assert abs(explanation.at_ms - now) < 10_000
    assert [(it.facet, it.label, it.freshness) for it in explanation.labels] == [
        (it.facet, it.label, it.freshness) for it in profile.labels
    ]
    tea = explanation.labels[0]
    assert tea.half_life_ms == HALF_LIFE
    assert [(it.source, it.model, it.event_ids, it.evidence) for it in tea.sources] == [
        ("chat", "m-2", ["c3", "c2", "c1"], 3),
        ("order", "m-1", ["o1"], 1),
    ]
    assert [it.weight_now for it in tea.sources] == pytest.approx([1.0, 0.5], rel=1e-3)
    assert tea.strength == pytest.approx(profile.labels[0].strength, rel=1e-3)
    assert client.explain("nobody") is None


# --- pages ------------------------------------------------------------------------------------------


@pytest.fixture
def audience(redis_url: str) -> dict[str, float]:
    """50 members: every third of its own score, the others in one large tie."""
    now = time.time() * 1000 / HALF_LIFE
    scores = {f"c{at:02}": now + (log2(1 + at / 10) if at % 3 == 0 else 1.0) for at in range(50)}
    with redis.Redis.from_url(redis_url) as store:
        store.hset(half_lives_key("t"), "interests", HALF_LIFE)
        store.zadd(audience_key("t", "interests", "tea"), scores)
    return scores


def pages(client: Both, limit: int, **options: Any) -> list[list[tuple[str, float]]]:
    found, cursor = [], None
    while True:
        page = client.audience("interests", "tea", limit=limit, cursor=cursor, **options)
        found.append(list(page))
        if (cursor := page.cursor) is None:
            return found


@pytest.mark.parametrize("limit", [1, 7, 25, 49, 50, 51])
def test_pages_together_are_the_audience(client: Both, audience: dict[str, float], limit: int) -> None:
    found = pages(client, limit)
    assert all(len(page) == limit for page in found[:-1])
    assert 1 <= len(found[-1]) <= limit
    expected = sorted(audience, key=lambda it: (audience[it], it), reverse=True)
    assert [member for page in found for member, _ in page] == expected
    strong = [member for page in pages(client, limit, min_strength=0.85) for member, _ in page]
    assert strong == [member for member, strength in client.audience("interests", "tea") if strength >= 0.85]
    assert 20 < len(strong) < 50


def test_nobody_comes_twice_while_scores_grow(client: Both, audience: dict[str, float], redis_url: str) -> None:
    key = audience_key("t", "interests", "tea")
    with redis.Redis.from_url(redis_url) as store:
        first = client.audience("interests", "tea", limit=25)
        shown = {member for member, _ in first}
        store.zadd(key, {"new": max(audience.values()) + 1, "c01": max(audience.values()) + 2})  # above all
        store.zrem(key, first[-1][0])  # the cursor's own
        tie = next(audience[it] for it in sorted(audience) if it not in shown and it != "c01")
        store.zadd(key, {f"zz{at}": tie for at in range(40)})  # into the cursor's score, before it
        cursor, rest = first.cursor, []
        while cursor is not None:
            page = client.audience("interests", "tea", limit=5, cursor=cursor)
            rest += [member for member, _ in page]
            cursor = page.cursor
    assert len(rest) == len(set(rest))
    assert not shown & set(rest)
    assert set(audience) - shown - {"c01"} <= set(rest)


def test_a_cursor_of_something_else_is_refused(client: Both, audience: dict[str, float], redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.zadd(audience_key("t", "interests", "cups"), {"a": 1.0, "b": 2.0})
    other = client.audience("interests", "cups", limit=1).cursor
    for cursor in (other, "", "abc", other[:-2], encode(TOKEN), 7):
        with pytest.raises(InvalidArgument, match="cursor: is not one that an audience of interests/tea gave"):
            client.audience("interests", "tea", cursor=cursor)


# --- coming back ------------------------------------------------------------------------------------


class Proxy:
    """Closes the first `failing` connections at once and hands the rest through to a store."""

    def __init__(self, store: Store, failing: int) -> None:
        self.accepted = 0
        self._failing = failing
        self._to = ("127.0.0.1", int(store.url.rpartition(":")[2].partition("/")[0]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                incoming, _ = self._listener.accept()
                self.accepted += 1
                if self.accepted <= self._failing:
                    incoming.close()
                    continue
                outgoing = socket.create_connection(self._to)
                for one, other in ((incoming, outgoing), (outgoing, incoming)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def test_a_failed_connection_is_tried_again(store: Store, kind: str) -> None:
    with Proxy(store, failing=2) as proxy, Both(kind, proxy.url) as client:
        assert client.get("nobody") is None
        assert proxy.accepted == 3


def test_attempts_are_counted(store: Store, kind: str) -> None:
    with Proxy(store, failing=99) as proxy:
        for retries in (0, 3):
            before = proxy.accepted
            with (
                Both(kind, proxy.url, retries=retries) as client,
                pytest.raises(StoreUnavailable, match="can't be read"),
            ):
                client.get("nobody")
            assert proxy.accepted == before + 1 + retries


def test_a_timeout_is_repeated_only_within_the_deadline(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        for deadline_s, least, most in ((None, 0.15, 0.4), (0.5, 0.45, 0.8)):
            started = time.monotonic()
            with Both(kind, url, timeout_s=0.2, deadline_s=deadline_s) as client, pytest.raises(StoreUnavailable):
                client.get("nobody")
            assert least < time.monotonic() - started < most


def test_a_password_that_is_wrong_is_not_tried_again(store: Store, kind: str) -> None:
    with Proxy(store, failing=0) as proxy:
        url = proxy.url.replace("redis://", "redis://nobody:secret@")
        with Both(kind, url) as client, pytest.raises(StoreUnavailable) as caught:
            client.get("a")
        assert proxy.accepted == 1
        assert "secret" not in str(caught.value)


def test_idle_connections_that_were_closed_cost_no_attempt(redis_url: str, kind: str) -> None:
    with Both(kind, redis_url, retries=0) as client, redis.Redis.from_url(redis_url) as admin:
        for _ in range(3):
            assert client.get("nobody") is None
            admin.client_kill_filter(_type="normal", skipme=True)


def test_a_client_may_be_shared_by_threads(redis_url: str) -> None:
    for at in range(20):
        put(redis_url, f"c{at}", {"x/0/e": 1})
    wrong: list[Any] = []
    with Both("sync", redis_url) as client:

        def read(first: int) -> None:
            for at in range(first, first + 100):
                profile = client.get(f"c{at % 20}")
                if profile is None or profile.customer_id != f"c{at % 20}":
                    wrong.append(profile)

        readers = [threading.Thread(target=read, args=(at,)) for at in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert not wrong


# --- what it needs ----------------------------------------------------------------------------------


def test_the_sdk_needs_no_more_than_its_light_install() -> None:
    """Everything else is made impossible to import, and the fakes and a look-up still work."""
    program = """
import sys
allowed = sys.stdlib_module_names | {"streaming", "redis", "hiredis", "msgpack", "msgspec"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked {name}", name=name)

sys.meta_path.insert(0, Blocker())
import streaming.client, streaming.client.testing
from streaming.client import ProfileClient, StoreUnavailable
assert streaming.client.testing.FakeProfileClient().put("c1").customer_id == "c1"
try:
    ProfileClient("redis://127.0.0.1:1", cache_mb=1).get("c1")
except StoreUnavailable:
    print(sorted({name.partition(".")[0] for name in sys.modules if not name.startswith("_")} - allowed))
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    leftovers = ran.stdout.strip()
    assert all(name not in leftovers for name in ("torch", "faust", "blacksheep", "numpy", "pydantic", "structlog")), (
        leftovers
    )
