"""Kept profiles over a real store: told of changes at once, empty while the connection for that is down."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from streaming.client import ProfileClient, StoreUnavailable, Token
from streaming.client.cache import ProfileCache
from streaming.embedded.store import Store
from streaming.profiles.keys import profile_key
from tests import stored
from tests.clients import Both


@pytest.fixture(scope="module")
def own() -> Iterator[Store]:
    """A store to stop and start."""
    with Store.start(appendonly=True) as store:
        yield store


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, own: Store) -> Iterator[Both]:
    with redis.Redis.from_url(own.url) as writer:
        writer.flushall()
    put(own, "a", 1)
    with Both(request.param, own.url, cache_mb=1) as opened:
        until_kept(opened, own, "a")
        yield opened


def put(store: Store, customer_id: str, count: int) -> None:
    with redis.Redis.from_url(store.url) as writer:
        writer.set(
            profile_key("t", customer_id), stored.profile(customer_id, 1, {"chat": {"n": count, "t": 1, "r": ""}})
        )


def count(client: Both, customer_id: str) -> int | None:
    profile = client.get(customer_id)
    return None if profile is None else profile.events["chat"]


def asked(store: Store) -> int:
    """Questions that the server has answered."""
    with redis.Redis.from_url(store.url) as reader:
        stats = reader.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("get", "mget"))


def until_kept(client: Both, store: Store, customer_id: str) -> None:
    end = time.monotonic() + 5
    while True:
        client.get(customer_id)
        before = asked(store)
        client.get(customer_id)
        if asked(store) == before:
            return
        assert time.monotonic() < end
        client.pause(0.02)


def test_a_kept_profile_costs_no_question(client: Both, own: Store) -> None:
    before = asked(own)
    for _ in range(100):
        assert count(client, "a") == 1
    assert client.get_many(["a", "nobody"])["nobody"] is None
    assert asked(own) == before + 1
    assert client.get("nobody") is None
    assert client.get_many(["nobody", "a", "nobody"])["a"].events == {"chat": 1}
    assert asked(own) == before + 1


def test_changes_are_seen_as_they_happen(client: Both, own: Store) -> None:
    assert client.get("b") is None
    for number in range(2, 20):
        put(own, "a", number)
        put(own, "b", number)
        client.pause(0.02)
        assert count(client, "a") == number
        assert count(client, "b") == number
    with redis.Redis.from_url(own.url) as writer:
        writer.delete(profile_key("t", "a"))
        client.pause(0.02)
        assert client.get("a") is None
        writer.flushall()
        client.pause(0.02)
        assert client.get("b") is None


def test_a_lost_connection_empties_it(client: Both, own: Store) -> None:
    """The change comes while nobody can be told of it."""
    with redis.Redis.from_url(own.url) as writer:
        tracked = [it for it in writer.client_list() if "t" in it["flags"] or "B" in it["flags"]]
        assert tracked
        pipeline = writer.pipeline()
        for it in tracked:
            pipeline.client_kill_filter(_id=it["id"])
        pipeline.set(profile_key("t", "a"), stored.profile("a", 1, {"chat": {"n": 9, "t": 1, "r": ""}}))
        pipeline.execute()
    client.pause(0.02)
    assert count(client, "a") == 9
    until_kept(client, own, "a")
    put(own, "a", 10)
    client.pause(0.02)
    assert count(client, "a") == 10


def test_a_store_that_went_away_is_not_papered_over(client: Both, own: Store) -> None:
    own.kill()
    client.pause(0.05)
    with pytest.raises(StoreUnavailable):
        client.get("a")
    own.restart()
    own.wait_answering()
    assert count(client, "a") == 1
    until_kept(client, own, "a")


def test_a_store_that_hangs_is_noticed(client: Both, own: Store) -> None:
    os.kill(own.pid, signal.SIGSTOP)
    try:
        client.pause(1.2)
        with pytest.raises(StoreUnavailable):
            client.get("a")
    finally:
        os.kill(own.pid, signal.SIGCONT)
    assert count(client, "a") == 1


def test_whoever_waited_for_an_event_does_not_read_an_older_profile(
    client: Both, own: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while the announcement of the change is still on its way."""
    assert count(client, "a") == 1
    monkeypatch.setattr(ProfileCache, "changed", lambda self, keys: None)
    found: dict[str, Any] = {"v": 1, "id": "a", "u": 1, "f": {"t/0/e": 8}, "s": {"chat": {"n": 2, "t": 1}}}
    with redis.Redis.from_url(own.url) as writer:
        writer.set(profile_key("t", "a"), stored.folded(found))
    assert count(client, "a") == 1
    assert client.wait_for(Token("a", "t", 0, 8), 1.0).events["chat"] == 2
    assert count(client, "a") == 2


def test_threads_read_while_profiles_change(own: Store) -> None:
    """No reader may see an older profile than one that was announced to it long ago."""
    written = [0]
    wrong: list[tuple[int, int]] = []
    stop = threading.Event()
    with ProfileClient(own.url, namespace="t", cache_mb=1) as client:

        def read() -> None:
            while not stop.is_set():
                least = written[0]
                time.sleep(0.05)  # far beyond the announcement's way
                profile = client.get("busy")
                if least and (profile is None or profile.events["chat"] < least):
                    wrong.append((least, profile.events["chat"] if profile else 0))

        readers = [threading.Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        for number in range(1, 300):
            put(own, "busy", number)
            written[0] = number
            time.sleep(0.003)
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong


def test_a_child_process_has_a_cache_of_its_own(own: Store) -> None:
    put(own, "a", 1)
    with Both("sync", own.url, cache_mb=1) as client:
        until_kept(client, own, "a")
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            verdict = 1
            try:
                os.read(ready, 1)
                time.sleep(1.2)  # trust in the parent's connection has run out
                before = count(client, "a")
                until_kept(client, own, "a")
                verdict = 0 if before == 2 and count(client, "a") == 2 else 1
            finally:
                os._exit(verdict)
        put(own, "a", 2)
        os.write(told, b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert count(client, "a") == 2
