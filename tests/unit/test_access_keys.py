"""Keys, their file and their ring; rates; what `limner keys` does."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from streaming.access import keys, rate
from streaming.access.callers import Refused
from streaming.cli.keys import keys as command
from streaming.errors import LimnerError, SettingsError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("LIMNER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys.json"


def run(path: Path, *args: str) -> Result:
    return CliRunner().invoke(command, ["--file", str(path), *args])


def added(path: Path, *args: str) -> str:
    done = run(path, "add", "shop", *(args or ("--scope", "read")))
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def listed(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(run(path, "list", "--json").stdout)
    return entries


# --- what a key is ----------------------------------------------------------------------------------


def test_only_a_hash_is_kept_and_the_file_is_its_owners(path: Path) -> None:
    key = added(path)
    prefix, key_id, secret = key.split("_", 2)
    assert prefix == "lmk"
    assert len(secret) == 43  # 256 bits
    assert secret not in path.read_text()
    assert key_id in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_right_key_is_found_and_no_other(path: Path) -> None:
    key, other = added(path), added(path)
    ring = keys.Keyring(path)
    assert ring.find(key).id == key.split("_")[1]
    assert ring.find(other).id != ring.find(key).id
    crossed = f"lmk_{key.split('_')[1]}_{other.split('_', 2)[2]}"
    for wrong in (key[:-1], key + "x", key.upper(), crossed, "lmk_", "lmk__", "lmk_00000000_x", "", listed_hash(path)):
        with pytest.raises(Refused, match="not known"):
            ring.find(wrong)


def listed_hash(path: Path) -> str:
    """Who has read the file has no key."""
    entry = keys.read(path)[0]
    return f"lmk_{entry.id}_{entry.hash}"


def test_a_key_works_until_it_expires(path: Path) -> None:
    key = added(path, "--scope", "read", "--expires", "12h")
    now = datetime.now(UTC)
    for at, works in ((now, True), (now + timedelta(hours=11.9), True), (now + timedelta(hours=12), False)):
        ring = keys.Keyring(path, now=lambda at=at: at)  # type: ignore[misc]
        if works:
            ring.find(key)
        else:
            with pytest.raises(Refused, match="was expired at"):
                ring.find(key)


def test_who_lacks_the_secret_does_not_learn_that_a_key_expired(path: Path) -> None:
    key = added(path)
    run(path, "revoke", key.split("_")[1])
    ring = keys.Keyring(path)
    with pytest.raises(Refused, match="was revoked at"):
        ring.find(key)
    with pytest.raises(Refused, match="not known"):
        ring.find(key[:-1] + ("a" if key[-1] != "a" else "b"))


# --- the file changes -------------------------------------------------------------------------------


def test_a_change_is_seen_and_a_broken_file_changes_nothing(path: Path) -> None:
    first = added(path)
    ring = keys.Keyring(path)
    second = added(path)
    with pytest.raises(Refused):
        ring.find(second)
    ring.refresh()
    assert ring.find(second)
    for broken in ("", "{", '{"keys": [{}]}', path.read_text().replace("read", "rule")):
        path.write_text(broken)
        ring.refresh()
        assert ring.find(first)
    path.unlink()
    ring.refresh()
    assert ring.find(first)
    path.write_text('{"keys": []}')
    ring.refresh()
    with pytest.raises(Refused):
        ring.find(first)


def test_an_unchanged_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added(path)
    ring = keys.Keyring(path)
    reads: list[Path] = []
    monkeypatch.setattr(keys, "read", lambda path: reads.append(path) or [])
    for _ in range(3):
        ring.refresh()
    assert reads == []


@pytest.mark.parametrize("content", [None, "", "[]", '{"keys": [{"id": "x"}]}'])
def test_a_service_does_not_start_on_a_wrong_file(path: Path, content: str | None) -> None:
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    with pytest.raises(SettingsError, match="keys_file"):
        keys.Keyring(path)


def test_two_keys_of_one_id_are_refused(path: Path) -> None:
    added(path)
    entry = keys.read(path)[0]
    path.write_bytes(msgspec.json.encode({"keys": [entry, entry]}))
    with pytest.raises(SettingsError, match="two keys of one id"):
        keys.read(path)


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    path.parent.mkdir()

    def make() -> None:
        with keys.changing(path) as entries:
            taken = {entry.id for entry in entries}
            entries.append(keys.generate(taken, name="n", scopes=["read"], namespace="lm")[1])

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys.read(path)) == 16


# --- the command line -------------------------------------------------------------------------------


def test_rotate_gives_the_same_rights_and_ends_the_old_key_later(path: Path) -> None:
    old = added(path, "--scope", "read", "--scope", "erase", "--namespace", "north", "--rate", "5", "--expires", "90d")
    old_id = old.split("_")[1]
    new = run(path, "rotate", old_id, "--overlap", "2h").stdout.strip()
    before, after = keys.read(path)
    assert after.id == new.split("_")[1]
    same = ("name", "scopes", "namespace", "rate")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    assert before.expires is not None and after.expires is not None
    assert abs(before.expires - datetime.now(UTC) - timedelta(hours=2)) < timedelta(seconds=5)
    assert abs(after.expires - datetime.now(UTC) - timedelta(days=90)) < timedelta(seconds=5)
    ring = keys.Keyring(path)
    assert ring.find(old).id == before.id and ring.find(new).id == after.id
    later = keys.Keyring(path, now=lambda: datetime.now(UTC) + timedelta(hours=2, seconds=1))
    assert later.find(new)
    with pytest.raises(Refused):
        later.find(old)


def test_rotating_does_not_lengthen_a_life(path: Path) -> None:
    key_id = added(path, "--scope", "read", "--expires", "1h").split("_")[1]
    was = keys.read(path)[0].expires
    run(path, "rotate", key_id, "--overlap", "24h")
    assert keys.read(path)[0].expires == was


def test_a_key_out_of_force_is_not_rotated(path: Path) -> None:
    key_id = added(path).split("_")[1]
    run(path, "revoke", key_id)
    done = run(path, "rotate", key_id)
    assert isinstance(done.exception, LimnerError) and "limner keys add" in str(done.exception)
    assert len(keys.read(path)) == 1


def test_list_shows_state_and_neither_key_nor_hash(path: Path) -> None:
    key = added(path)
    entry = keys.read(path)[0]
    run(path, "revoke", entry.id)
    for args in (["list"], ["list", "--json"]):
        out = run(path, *args).stdout
        assert entry.id in out and "revoked" in out and "shop" in out
        assert entry.hash not in out and key not in out
    assert [row["id"] for row in listed(path)] == [entry.id]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["add", "x"], "--scope"),
        (["add", "x", "--scope", "write"], "admin"),
        (["add", "x", "--scope", "read", "--expires", "soon"], "90d"),
        (["add", "x", "--scope", "read", "--rate", "0"], "rate"),
    ],
)
def test_wrong_use_says_what_is_right(path: Path, args: list[str], said: str) -> None:
    done = run(path, *args)
    assert done.exit_code == 2 and said in done.output
    assert not path.exists()


def test_unknown_ids_and_no_file_are_named(path: Path) -> None:
    added(path)
    assert "limner keys list" in str(run(path, "revoke", "00000000").exception)
    assert "LIMNER_KEYS_FILE" in str(CliRunner().invoke(command, ["list"]).exception)


# --- rates ------------------------------------------------------------------------------------------


def test_a_bucket_holds_a_second_and_fills_at_its_rate() -> None:
    buckets = rate.Buckets()
    taken = [buckets.take("a", 5, 100.0) for _ in range(6)]
    assert taken[:5] == [0] * 5
    assert taken[5] == pytest.approx(0.2)
    assert buckets.take("b", 5, 100.0) == 0  # another's is full
    assert buckets.take("a", 5, 100.1) == pytest.approx(0.1)
    assert buckets.take("a", 5, 100.2) == 0
    assert [buckets.take("a", 5, 1000.0) == 0 for _ in range(6)] == [True] * 5 + [False]


def test_a_rate_below_one_a_second_lets_one_through_at_once() -> None:
    buckets = rate.Buckets()
    assert [buckets.take("a", 0.1, at) for at in (0.0, 1.0, 9.5, 10.0)] == [0, pytest.approx(9), pytest.approx(0.5), 0]


@given(
    r=st.floats(0.2, 50),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_never_more_than_burst_and_rate_and_a_told_wait_is_enough(r: float, gaps: list[float]) -> None:
    buckets, now, admitted = rate.Buckets(), 0.0, []
    for gap in gaps:
        now += gap
        if wait := buckets.take("a", r, now):
            now += wait
            assert buckets.take("a", r, now) == 0
        admitted.append(now)
        for earlier in range(len(admitted)):
            span = now - admitted[earlier]
            assert len(admitted) - earlier <= max(1, r) + r * span + 1e-6


def test_callers_without_number_take_bounded_memory_and_no_one_gains_by_it() -> None:
    buckets = rate.Buckets()
    assert [buckets.take("greedy", 1, 0.0) == 0 for _ in range(2)] == [True, False]
    for index in range(3 * rate.MAX_CALLERS):
        buckets.take(f"c{index}", 100, 0.0)
    assert len(buckets._full_at) <= rate.MAX_CALLERS
    assert buckets.take("greedy", 1, 0.0) > 0
