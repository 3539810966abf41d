"""Engines in real processes, with an engine that does to its process what a text says."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from model.engine_process import Start
from model.errors import EngineFailed, ModelCorrupt, TextRefused
from model.pool import EnginePool, PoolOptions
from tests.engine_fakes import LOAD, FakeEngine

EXACT = FakeEngine()
TEXTS = [f"message {n}" for n in range(100)]


def pool(engines: int = 2, arguments: dict[str, Any] | None = None, **options: Any) -> EnginePool:
    return EnginePool(Start(LOAD, arguments or {}), PoolOptions(engines=engines, threads=1, **options))


@pytest.fixture(scope="module")
def shared() -> Iterator[EnginePool]:
    with pool(window_tokens=200) as running:
        yield running


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_answers_as_the_engine_does(shared: EnginePool) -> None:
    assert (shared.version, shared.device, shared.labels) == ("fake-1", "cpu", EXACT.labels)
    assert [(ref.facet, ref.label, ref.half_life_ms) for ref in shared.label_refs] == [
        (ref.facet, ref.label, ref.half_life_ms) for ref in EXACT.label_refs
    ]
    texts = [*TEXTS, *TEXTS[:7], "", "很好", "half a pair \ud83d"]
    assert shared.evidence(texts, "order") == EXACT.evidence(texts[:-1], "order") + EXACT.evidence(
        ["half a pair ?"], "order"
    )
    assert shared.evidence(TEXTS, "chat") == EXACT.evidence(TEXTS, "chat")
    assert (shared.embed(texts[:9]) == EXACT.embed(texts[:9])).all()
    scores = shared.score([*texts[:9], texts[0]])
    assert {facet: rows.shape for facet, rows in scores.items()} == {
        "interests": (10, 6),
        "needs": (10, 4),
        "sentiment": (10, 3),
    }
    for facet, rows in EXACT.score([*texts[:9], texts[0]]).items():
        assert (scores[facet] == rows).all()
    assert shared.embed([]).shape == (0, 3)
    assert shared.evidence([], "chat") == []


def test_a_remembered_text_crosses_no_border(shared: EnginePool) -> None:
    texts = [f"once {n}" for n in range(30)]
    first = shared.evidence(texts * 2, "chat")
    before = shared.stats()
    assert shared.evidence(texts, "chat") == first[:30]
    after = shared.stats()
    assert after["window_texts"] == before["window_texts"]
    assert after["hits"] == before["hits"] + 30
    assert 0 < after["bytes"] <= after["max_bytes"]
    np.testing.assert_array_equal(shared.embed(texts), shared.embed(texts))
    assert shared.stats()["window_texts"] == after["window_texts"] + 30


def test_several_callers_at_once(shared: EnginePool) -> None:
    asked = [[f"caller {n} text {k}" for k in range(50)] for n in range(6)]
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda texts: shared.evidence(texts, "chat"), asked))
    assert answers == [EXACT.evidence(texts, "chat") for texts in asked]


def test_a_process_that_dies_is_replaced_and_its_window_tried_again(tmp_path: Path) -> None:
    with pool(1, {"marker": str(tmp_path / "died")}) as engines:
        pids = engines.pids()
        texts = ["die once", *TEXTS]
        assert engines.evidence(texts, "chat") == EXACT.evidence(texts, "chat")
        assert engines.stats()["restarts"] == 1
        assert engines.pids() != pids


def test_a_process_killed_while_idle_is_replaced_and_nobody_hears_of_it() -> None:
    with pool(2) as engines:
        for pid in engines.pids():
            os.kill(pid, signal.SIGKILL)
        assert gone(engines.pids())
        assert engines.evidence(TEXTS, "chat") == EXACT.evidence(TEXTS, "chat")


@pytest.mark.parametrize("fault", ["die", "hang", "raise", "eat"])
def test_the_text_that_does_it_is_refused_and_no_other(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    texts = [*TEXTS[:5], fault, *TEXTS[5:8]]
    good = [text for text in texts if text != fault]
    with pool(2, deadline_s=0.3) as engines, caplog.at_level(logging.DEBUG):
        with pytest.raises(TextRefused) as refused:
            engines.evidence(texts, "chat")
        assert refused.value.refused == [5]
        stats = engines.stats()
        assert (stats["restarts"] > 0) == (fault in ("die", "hang"))
        assert engines.evidence(good, "chat") == EXACT.evidence(good, "chat")  # remembered
        with pytest.raises(TextRefused):
            engines.evidence([fault], "chat")  # known
        assert engines.stats() | {"hits": 0} == stats | {"hits": 0, "engines": engines.stats()["engines"]}
        assert engines.evidence(["another"], "chat") == EXACT.evidence(["another"], "chat")
    assert "failed at" in caplog.text
    assert "message" not in caplog.text and repr(fault) not in caplog.text


def test_a_process_that_is_held_up_is_replaced() -> None:
    with pool(1, deadline_s=0.5) as engines:
        (pid,) = engines.pids()
        os.kill(pid, signal.SIGSTOP)
        assert engines.evidence(TEXTS[:3], "chat") == EXACT.evidence(TEXTS[:3], "chat")
        assert gone([pid])
        assert engines.stats()["restarts"] == 1


def test_an_engine_that_fails_on_everything_condemns_nothing() -> None:
    with pool(2, {"broken": True}) as engines:
        with pytest.raises(EngineFailed, match="fails on every text"):
            engines.evidence(TEXTS, "chat")
        with pytest.raises(EngineFailed):
            engines.evidence(["another"], "chat")


def test_what_loading_raises_reaches_the_caller() -> None:
    before = psutil.Process().children()
    with pytest.raises(ModelCorrupt, match="cut short"):
        pool(2, {"fail": "weights are cut short"})
    with pytest.raises(EngineFailed, match=r"did not start.*code 4"):
        pool(2, {"die": True})
    assert psutil.Process().children() == before


def test_another_model_after_a_restart_is_an_error(tmp_path: Path) -> None:
    engines = pool(1, {"version": "fake-1"})
    with engines:
        engines._start.arguments["version"] = "fake-2"  # as if the model's folder had been replaced
        os.kill(engines.pids()[0], signal.SIGKILL)
        with pytest.raises(EngineFailed, match=r"now fake-2, not fake-1"):
            engines.evidence(["x"], "chat")


def test_closing_tells_who_waits_and_ends_all() -> None:
    engines = pool(2)
    pids = engines.pids()
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(engines.evidence, ["hang"], "chat")
        time.sleep(0.2)
        engines.close()
        with pytest.raises(EngineFailed, match="closing"):
            asked.result(5)
    assert gone(pids)


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
def test_processes_end_with_a_parent_that_is_killed(state: str) -> None:
    program = (
        "import sys, threading, time; from model.pool import EnginePool, PoolOptions, Start;"
        "pool = EnginePool(Start('tests.engine_fakes:load', {}), PoolOptions(engines=2, threads=1));"
        "[threading.Thread(target=pool.evidence, args=(['hang', 'x' * 2000], 'chat'), daemon=True).start()"
        " for _ in range(2 * (sys.argv[1] == 'busy'))]; time.sleep(0.2);"
        "print(*pool.pids(), flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, state], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if state == "stopped":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait(10)
        assert gone(pids)
    finally:
        with suppress(ProcessLookupError):
            parent.kill()


def test_memory_for_processes_is_given_back_first(shared: EnginePool) -> None:
    """Where memory runs out, the kernel ends an engine, which is replaced, not the worker."""
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert all(int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > own for pid in shared.pids())
