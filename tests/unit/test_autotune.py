"""What a machine is best used with is measured once, kept, and measured again when something of it changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from model import autotune
from model.engine_process import Start
from model.errors import EngineFailed, ModelCorrupt
from tests.engine_fakes import LOAD


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "busy", lambda: False)
    monkeypatch.setattr(autotune, "SECONDS", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A model folder as far as a checksum goes."""
    before = psutil.Process().children()  # the servers of other tests
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    yield model
    assert psutil.Process().children() == before  # whatever happened, no engine is left


def start(**arguments: Any) -> Start:
    return Start(LOAD, arguments)


def of(folder: Path) -> dict[str, str | int]:
    return autotune.machine(str(folder), folder.parent)


def test_engines_that_wait_are_worth_having_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake sleeps: n processes do n times as much."""
    monkeypatch.setattr(autotune, "cores", lambda: 3)
    found = autotune.measure(start(text_s=0.0005), of(folder), seconds=0.1)
    assert list(found.by_processes) == ["1x3", "3x1"]
    assert (found.engines, found.threads) == (3, 1)
    assert found.by_processes["3x1"] > 2 * found.by_processes["1x3"]
    assert found.window_tokens in autotune.WINDOWS
    assert found.machine == of(folder)


def test_windows_that_hold_others_up_are_not_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "cores", lambda: 1)
    found = autotune.measure(start(text_s=0.01, window_s=0.2), of(folder), seconds=0.1)
    assert found.engines == 1
    # 512 tokens are about 40 texts: 0.6 s, 1,024: 1 s
    assert list(found.by_window) == ["512"]


def test_windows_are_of_about_their_size() -> None:
    for tokens in autotune.WINDOWS:
        for window in autotune._windows(tokens):
            assert tokens <= sum(map(autotune.tokens_of, window)) < tokens + 256
            assert len(set(window)) > 0.97 * len(window)


def test_the_least_that_is_nearly_best_is_chosen() -> None:
    assert autotune._least_that_is_worth_it({1: 100.0, 2: 103.0}) == 1
    assert autotune._least_that_is_worth_it({1: 100.0, 2: 180.0, 4: 185.0}) == 2


def test_measured_once_and_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert autotune.kept(str(folder), tmp_path) is None
    found = autotune.tuned(str(folder), tmp_path, start())
    assert found.by_processes and autotune.kept(str(folder), tmp_path) == found
    broken = start(fail="must not be loaded again")
    assert autotune.tuned(str(folder), tmp_path, broken) == found
    assert f"{found.engines} engines x {found.threads} threads" in autotune.words(found)

    (folder / "model.safetensors").write_bytes(b"other weights")
    assert autotune.kept(str(folder), tmp_path) is None
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in ("cores", "_cpu"):
        with monkeypatch.context() as changed:
            changed.setattr(autotune, name, lambda: 77)
            assert autotune.kept(str(folder), tmp_path) is None
    with monkeypatch.context() as changed:
        changed.setattr(autotune, "version", lambda _: "9.9")
        assert autotune.kept(str(folder), tmp_path) is None
    assert autotune.kept(str(folder), tmp_path) == found


def test_a_damaged_result_is_measured_again(folder: Path, tmp_path: Path) -> None:
    found = autotune.tuned(str(folder), tmp_path, start())
    (path,) = (tmp_path / autotune.FOLDER).glob("*.json")
    for content in ("", "{", json.dumps({"engines": "many"})):
        path.write_text(content)
        assert autotune.kept(str(folder), tmp_path) is None
    assert autotune.tuned(str(folder), tmp_path, start()).machine == found.machine
    assert autotune.kept(str(folder), tmp_path)


def test_a_busy_machine_is_not_measured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "busy", lambda: True)
    guessed = autotune.tuned(str(folder), tmp_path, start(fail="must not be loaded"))
    assert (guessed.engines >= 1, guessed.by_processes) == (True, {})
    assert autotune.kept(str(folder), tmp_path) is None


def test_memory_bounds_engines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "cores", lambda: 8)
    monkeypatch.setattr(autotune, "_found", lambda *_: str(3 * autotune.ENGINE_BYTES // 1024))
    assert (autotune.guess({}).engines, autotune.guess({}).threads) == (1, 8)


def test_a_gpu_has_two_engines_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "cores", lambda: 4)
    found = autotune.measure(start(device="cuda:0"), of(folder), seconds=0.05)
    assert list(found.by_processes) == ["1x4", "2x2"]


def test_faults_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="cut short"):
        autotune.tuned(str(folder), tmp_path, start(fail="cut short"))
    with pytest.raises(EngineFailed, match="while this machine was measured"):
        autotune.tuned(str(folder), tmp_path, start(broken=True))
