"""Kept profiles: bounded, dropped when they change however the announcement races, and only while it can come."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import Any

import pytest

from streaming.client import cache as module
from streaming.client.cache import MISSING, ProfileCache
from streaming.client.calls import now_ms
from streaming.profiles.keys import profile_key, tombstone_key
from streaming.profiles.view import Profile
from tests import stored

DAY_MS = 86_400_000


def raw(customer_id: str, labels: int = 1, strength: float = 1.0) -> bytes:
    now = now_ms()
    sums = {f"label {at}": [strength, now, 3, "model-1", ["m-1", "m-2", "m-3"]] for at in range(labels)}
    chat = {"n": 1, "t": now, "r": "12345678" * 32, "l": {"interests": [7 * DAY_MS, sums]}}
    return stored.profile(customer_id, now, {"chat": chat})


class Kept:
    """A cache that is told it may trust, filled as a client does."""

    def __init__(self, max_bytes: int = 1_000_000) -> None:
        self.cache = ProfileCache("t", max_bytes)
        self.cache.keep_trusting("", time.monotonic())

    def begin(self, *ids: str) -> dict[str, object]:
        keys = {it: profile_key("t", it) for it in ids}
        return self.cache.begin(keys, lambda key: "", lambda source: None)

    def store(self, tickets: dict[str, object], **found: bytes | None) -> None:
        profiles = {it: Profile.from_bytes(data, now_ms()) if data else None for it, data in found.items()}
        self.cache.store(tickets, list(found.values()), profiles)

    def fill(self, **found: bytes | None) -> None:
        self.store(self.begin(*found), **found)

    def changed(self, *ids: str) -> None:
        self.cache.changed([profile_key("t", it) for it in ids])


def test_a_kept_profile_is_given_out_until_it_changes() -> None:
    kept = Kept()
    kept.fill(a=raw("a"), b=None)
    profile = kept.cache.get("a")
    assert isinstance(profile, Profile)
    assert kept.cache.get("a") is profile
    assert kept.cache.get("b") is None
    assert kept.cache.get("c") is MISSING
    kept.changed("b", "c")
    assert kept.cache.get("b") is MISSING
    assert kept.cache.get("a") is profile
    kept.cache.forget("a")
    assert kept.cache.get("a") is MISSING
    kept.fill(a=raw("a"))
    kept.cache.changed(None)  # FLUSHALL
    assert kept.cache.get("a") is MISSING


def test_other_keys_below_the_prefix_change_nothing() -> None:
    kept = Kept()
    kept.fill(a=raw("a"))
    kept.cache.changed([tombstone_key("t", "a"), b"t:{a}:q"])
    assert isinstance(kept.cache.get("a"), Profile)


@pytest.mark.parametrize("event", ["changed", "flushed", "lost", "forgotten", "overtaken", "abandoned"])
def test_what_happens_between_question_and_answer_is_not_lost(event: str) -> None:
    kept = Kept()
    tickets = kept.begin("a")
    if event == "changed":
        kept.changed("a")
    elif event == "flushed":
        kept.cache.changed(None)
    elif event == "lost":
        kept.cache.lost("")
        kept.cache.keep_trusting("", time.monotonic())
    elif event == "forgotten":
        kept.cache.forget("a")
    elif event == "overtaken":
        kept.store(kept.begin("a"), a=None)
    else:
        kept.cache.abandon(tickets)
    kept.store(tickets, a=raw("a"))
    assert kept.cache.get("a") is (None if event == "overtaken" else MISSING)


def test_nothing_is_kept_or_given_out_without_a_sign_of_life() -> None:
    kept = Kept()
    kept.fill(a=raw("a"))
    kept.cache.keep_trusting("", time.monotonic() - module.TRUST_S - 0.01)
    assert kept.cache.get("a") is MISSING
    assert kept.begin("a") == {}
    kept.cache.keep_trusting("", time.monotonic())  # late, but all was announced
    assert isinstance(kept.cache.get("a"), Profile)
    kept.cache.lost("")
    kept.cache.keep_trusting("", time.monotonic())
    assert kept.cache.get("a") is MISSING


def test_each_server_of_a_cluster_must_be_heard() -> None:
    kept = Kept()
    kept.fill(a=raw("a"))
    kept.cache.lost("other")
    assert kept.cache.get("a") is MISSING
    kept.cache.keep_trusting("other", time.monotonic())
    kept.fill(a=raw("a"))
    assert isinstance(kept.cache.get("a"), Profile)
    kept.cache.keep_trusting("other", 0.0)
    assert kept.cache.get("a") is MISSING
    kept.cache.gone("other")
    assert isinstance(kept.cache.get("a"), Profile)


def test_a_kept_profile_is_read_anew_before_its_strengths_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    kept.fill(a=raw("a"))
    first: Any = kept.cache.get("a")
    monkeypatch.setattr(module, "now_ms", lambda: now_ms() + 14 * DAY_MS)
    monkeypatch.setattr(module, "monotonic", lambda: time.monotonic() + module.REREAD_S + 0.01)
    kept.cache.keep_trusting("", time.monotonic() + module.REREAD_S)
    second: Any = kept.cache.get("a")
    assert second.labels[0].strength < first.labels[0].strength / 2


def test_the_bound_holds_and_the_least_used_goes() -> None:
    data = raw("x")
    kept = Kept()
    kept.fill(a=data)
    kept = Kept(max_bytes=3 * kept.cache._bytes)
    kept.fill(a=data, b=data, c=data)
    kept.cache.get("a")
    kept.fill(d=data)
    assert [it for it in "abcd" if kept.cache.get(it) is not MISSING] == ["a", "c", "d"]
    kept.fill(e=raw("e", labels=60))  # larger than all of it
    assert kept.cache.get("e") is MISSING
    for _ in range(5):
        kept.fill(a=data)  # replaced, not added
    kept.fill(b=data)
    assert isinstance(kept.cache.get("a"), Profile)


@pytest.mark.parametrize("labels", [0, 1, 12, 40])
def test_the_bound_is_one_of_memory(labels: int) -> None:
    bound = 400_000
    kept = Kept(bound)
    kept.cache.keep_trusting("", time.monotonic() + 60)
    data = raw("x", labels)
    gc.collect()
    tracemalloc.start()
    try:
        for at in range(5 * bound // (1_000 + 800 * labels)):
            kept.fill(**{f"customer-{at}": bytes(bytearray(data))})
        gc.collect()
        mine = [tracemalloc.Filter(True, pattern) for pattern in ("*/streaming/*", __file__)]
        traces = tracemalloc.take_snapshot().filter_traces(mine).traces
        # other tests' threads allocate, too, and Python's table of interned strings may double at any string
        used = sum(trace.size for trace in traces if trace.size < bound // 4)
    finally:
        tracemalloc.stop()
    assert 0.7 * bound < used < 1.2 * bound
