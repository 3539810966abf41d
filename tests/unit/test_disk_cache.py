"""Answers to order descriptions outlive a worker, are shared, bounded, and never plain text."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model.cache import Evidence
from model.disk_cache import FILE, DiskCache
from model.engine_process import Start
from model.pool import EnginePool, PoolOptions
from tests.engine_fakes import LOAD, FakeEngine

MB = 2**20


def said(number: int) -> Evidence:
    return tuple((index, round(1 / (index + 1 + number), 4)) for index in range(number % 4))


ITEMS = {f"description {n}": said(n) for n in range(2000)}


def written(folder: Path, version: str = "v1", items: dict[str, Evidence] = ITEMS, max_bytes: int = MB) -> None:
    cache = DiskCache(folder, version, max_bytes)
    cache.put_many(items.items())
    cache.close()


def found(folder: Path, version: str = "v1") -> dict[str, Evidence]:
    cache = DiskCache(folder, version, MB)
    try:
        return cache.get_many(list(ITEMS))
    finally:
        cache.close()


def test_what_was_written_is_found_under_its_version(tmp_path: Path) -> None:
    written(tmp_path)
    assert found(tmp_path) == ITEMS
    assert found(tmp_path, "v2") == {}
    written(tmp_path, "v2", {"description 3": ((7, 0.5),)})
    assert found(tmp_path, "v2") == {"description 3": ((7, 0.5),)}
    assert found(tmp_path) == ITEMS
    cache = DiskCache(tmp_path, "v1", MB)
    assert cache.get_many(["never", "half a pair \ud83d"]) == {}
    assert cache.hits == 0
    cache.close()


def test_no_text_is_on_disk(tmp_path: Path) -> None:
    written(tmp_path)
    assert b"description" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_the_file_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    bound = 200_000
    cache = DiskCache(tmp_path, "v1", bound)
    for start in range(0, 20_000, 500):
        cache.put_many((f"text {n}", said(n)) for n in range(start, start + 500))
    cache.close()
    assert (tmp_path / FILE).stat().st_size < 1.5 * bound
    cache = DiskCache(tmp_path, "v1", bound)
    assert len(cache.get_many([f"text {n}" for n in range(19_000, 20_000)])) == 1000
    assert cache.get_many([f"text {n}" for n in range(1000)]) == {}
    cache.close()


@pytest.mark.parametrize("damage", ["cut", "zeros", "noise", "empty", "not ours"])
def test_a_damaged_file_gives_no_wrong_answer_and_is_replaced(damage: str, tmp_path: Path) -> None:
    written(tmp_path)
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    for at in range(5000, len(content), 1777):
        content[at] ^= 0x55
    bad = {"cut": file.read_bytes()[: len(content) // 2], "zeros": bytes(len(content)), "noise": bytes(content),
           "empty": b"", "not ours": b"a,b\n1,2\n" * 1000}  # fmt: skip
    file.write_bytes(bad[damage])
    assert found(tmp_path).items() <= ITEMS.items()
    written(tmp_path)
    written(tmp_path)  # where the first only found the damage
    assert found(tmp_path) == ITEMS


def test_a_changed_answer_is_not_believed_and_written_again(tmp_path: Path) -> None:
    written(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE evidence SET content = ? WHERE rowid = 3", (b"\x91\x92\x01\xcb" + bytes(8),))
    assert len(found(tmp_path)) == len(ITEMS) - 1
    written(tmp_path)
    assert found(tmp_path) == ITEMS


def test_a_folder_that_can_not_be_used_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    written(tmp_path / "file" / "below")
    assert found(tmp_path / "file" / "below") == {}


def test_a_locked_file_holds_nobody_up(tmp_path: Path) -> None:
    written(tmp_path)
    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        cache = DiskCache(tmp_path, "v1", MB)
        began = time.monotonic()
        assert cache.get_many(list(ITEMS)) == ITEMS  # who writes stops no reader
        cache.put_many({"new": said(1)}.items())
        assert time.monotonic() - began < 0.1
        cache.close()


def test_several_processes_share_it_and_one_that_is_killed_spoils_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from model.disk_cache import DiskCache;"
        "cache = DiskCache(Path(sys.argv[1]), 'v1', 2**24); print('up', flush=True);"
        "[cache.put_many([(f'{sys.argv[2]} {n} {k}', ((k, 0.5),)) for k in range(20)]) or time.sleep(0.002)"
        " for n in range(1000)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "up\n"
    cache = DiskCache(tmp_path, "v1", MB)
    deadline = time.monotonic() + 20
    while len(cache.get_many([f"{name} 5 0" for name in "abc"])) < 3:  # each is in the middle of its work
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cache.close()
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    written(tmp_path)
    assert found(tmp_path) == ITEMS
    cache = DiskCache(tmp_path, "v1", MB)
    theirs = cache.get_many([f"{name} {n} {k}" for name in "abc" for n in range(100) for k in range(20)])
    assert {text.split()[0] for text in theirs} == set("abc")
    assert all(evidence == ((int(text.split()[2]), 0.5),) for text, evidence in theirs.items())
    cache.close()


def test_threads_share_one(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, "v1", MB)

    def work(name: str) -> None:
        for n in range(50):
            cache.put_many({f"{name} {n}": said(n)}.items())
            assert cache.get_many([f"{name} {n}"]) in ({}, {f"{name} {n}": said(n)})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()


def test_a_new_worker_reads_no_description_again_and_every_chat(tmp_path: Path) -> None:
    texts = list(ITEMS)[:200]
    options = PoolOptions(engines=1, threads=1, disk_mb=1, cache_dir=tmp_path)
    with EnginePool(Start(LOAD, {}), options) as first:
        orders = first.evidence(texts, "order")
        chats = first.evidence([f"chat {text}" for text in texts], "chat")
    with EnginePool(Start(LOAD, {}), options) as second:
        assert second.evidence(texts, "order") == orders == FakeEngine().evidence(texts, "order")
        assert (second.stats()["disk_hits"], second.stats()["misses"]) == (200, 0)
        assert second.evidence([f"chat {text}" for text in texts], "chat") == chats
        assert second.stats()["misses"] == 200  # chats are never written
    with EnginePool(Start(LOAD, {"version": "fake-2"}), options) as other:
        other.evidence(texts, "order")
        assert other.stats()["misses"] == 200
