"""How many engine processes this machine is best used with, and how large their windows are: measured once, and kept.

One process with all threads loses time where a forward pass runs on one thread, and in the threads' waiting for each
other; a process a core doesn't, but takes memory for each. Small windows answer sooner, large ones cost less a text.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import platform
import re
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from model.e5 import FOLDER as BASE_FOLDER
from model.e5 import ensure_base
from model.engine_process import EngineDied, EngineProcess, Job, Start
from model.errors import EngineFailed, ModelError
from model.files import exclusive, weights_checksum
from model.queue import tokens_of

log = logging.getLogger(__name__)
T = TypeVar("T")

FOLDER = "tuning"
# Moves when what is measured changes, so that old results are not taken for new.
EDITION = 1
# Of one measurement; each is made twice, in turn with the others, so that a disturbance meets all of them.
SECONDS = 0.7
# More engines must gain this much to be worth their memory, and larger windows their waiting.
WORTH = 1.05
WINDOWS = (512, 1024, 2048, 4096, 8192)
DEFAULT_WINDOW = 1024
# What comes behind a window waits for all of it: longer ones are not tried.
WINDOW_S = 0.5
# After so much measuring, what was measured so far decides: a machine this slow is busy with something else.
MOST_SECONDS = 20.0
# One window, or a change of threads, on a machine that does something else.
DEADLINE_S = 60.0
# Private memory of an engine with the whole base model, most of it the tokenizer's.
ENGINE_BYTES = 2**29
# More processes would mostly wait for memory's bandwidth.
MOST_ENGINES = 16
# Texts as short messages are: log-normal, of 10 words in the median, at most 60 (BANKING77: 10 and 79).
MEDIAN_WORDS, SPREAD, MOST_WORDS = 10, 0.6, 60
WORDS = ("order", "parcel", "card", "the", "my", "where", "is", "still", "not", "arrived", "please", "refund", "blue",
         "mug", "account", "when", "will", "delivery", "charged", "twice")  # fmt: skip


class Tuning(msgspec.Struct, frozen=True):
    """What to run, and what was measured: texts/s by "engines x threads", and by window tokens with the chosen one."""

    engines: int
    threads: int
    window_tokens: int
    by_processes: dict[str, float]
    by_window: dict[str, float]
    machine: dict[str, str | int]
    seconds: float


def machine(model: str, cache_dir: Path) -> dict[str, str | int]:
    """What a result holds for: processor, cores, torch and the model's weights."""
    folder = cache_dir / BASE_FOLDER if model == "base" else Path(model)
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "torch": version("torch"),
        "model": weights_checksum(folder) if folder.is_dir() else model,  # a hub id
        "edition": EDITION,
    }


def kept(model: str, cache_dir: Path) -> Tuning | None:
    """The result for this machine and model, if there is one."""
    try:
        return msgspec.json.decode(_path(machine(model, cache_dir), cache_dir).read_bytes(), type=Tuning)
    except (OSError, msgspec.MsgspecError):
        return None


def tuned(model: str, cache_dir: Path, start: Start) -> Tuning:
    """The kept result, or one measured now (a model's load and about 10 s) and kept. Of several processes that call
    it at once, one measures. On a machine that is busy, nothing is measured: the result is a guess, and not kept.

    Raises:
        ModelError: the model can't be loaded, or `cache_dir` can't be written.
    """
    if found := kept(model, cache_dir):
        return found
    if busy():
        log.warning("this machine is busy, so it is not measured: engines are guessed; see `limner doctor --deep`")
        return guess(machine(model, cache_dir))
    if model == "base":
        ensure_base(cache_dir)
    folder = cache_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            if found := kept(model, cache_dir):
                return found
            result = measure(start, machine(model, cache_dir), SECONDS)
            path = _path(result.machine, cache_dir)
            path.with_suffix(".new").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
            path.with_suffix(".new").replace(path)
    except OSError as error:
        raise ModelError(f"{folder} can't be written ({error}): set LIMNER_CACHE_DIR, or LIMNER_ENGINES") from error
    log.info("measured this machine in %.0f s: %s", result.seconds, words(result))
    return result


def busy() -> bool:
    """Whether others use the processors so much that a measurement would be of them."""
    return os.getloadavg()[0] > cores()


def guess(of: dict[str, str | int]) -> Tuning:
    """What was best on the machines seen so far: a process a core."""
    count = min(cores(), MOST_ENGINES, _room())
    return Tuning(count, max(1, cores() // count), DEFAULT_WINDOW, {}, {}, of, 0.0)


def words(result: Tuning) -> str:
    """One line for people."""
    of = ", ".join(f"{shape} {rate:,.0f}" for shape, rate in result.by_processes.items()) or "not measured"
    return (
        f"{result.engines} engines x {result.threads} threads, windows of {result.window_tokens:,} tokens "
        f"(texts/s by engines x threads: {of})"
    )


def measure(start: Start, of: dict[str, str | int], seconds: float) -> Tuning:
    """Start as many engines as could be of use, and time them, `seconds` a measurement.

    Raises:
        ModelError: the model can't be loaded; EngineFailed, an engine ended meanwhile.
    """
    began = time.monotonic()
    with _engines(start, min(cores(), MOST_ENGINES, _room())) as engines:
        shapes = sorted({(count, max(1, cores() // count)) for count in (1, max(1, len(engines) // 2), len(engines))})
        until = time.monotonic() + MOST_SECONDS
        by_shape = dict.fromkeys(shapes, 0.0)
        for turn in range(2):
            if turn == 0 or time.monotonic() < until - MOST_SECONDS / 2:
                for count, threads in shapes:
                    by_shape[count, threads] += _rate(engines[:count], threads, DEFAULT_WINDOW, seconds)[0]
            else:
                by_shape = {shape: 2 * rate for shape, rate in by_shape.items()}
        count, threads = _least_that_is_worth_it(by_shape)
        by_window: dict[int, float] = {}
        for tokens in WINDOWS:
            rate, took_s = _rate(engines[:count], threads, tokens, 2 * seconds)
            if by_window and (took_s > WINDOW_S or time.monotonic() > until):
                break
            by_window[tokens] = rate
    return Tuning(
        count,
        threads,
        _least_that_is_worth_it(by_window),
        {f"{count}x{threads}": round(rate / 2, 1) for (count, threads), rate in by_shape.items()},
        {str(tokens): round(rate, 1) for tokens, rate in by_window.items()},
        of,
        round(time.monotonic() - began, 1),
    )


def _least_that_is_worth_it(rates: dict[T, float]) -> T:
    """The first whose rate no later one betters by WORTH."""
    best = max(rates.values())
    return next(shape for shape, rate in rates.items() if rate * WORTH >= best)


def _rate(engines: Sequence[EngineProcess], threads: int, window_tokens: int, seconds: float) -> tuple[float, float]:
    """Texts/s of engines that are given window after window, and the median window's seconds.

    Raises:
        EngineFailed: one ended.
    """
    windows = _windows(window_tokens)
    took: list[float] = []
    faults: list[EngineDied] = []
    texts = 0
    lock = threading.Lock()

    def drive(engine: EngineProcess) -> None:
        nonlocal texts
        try:
            for window in itertools.cycle(windows):
                began = time.monotonic()
                engine.ask(Job("evidence", "chat", window), DEADLINE_S)
                with lock:
                    took.append(time.monotonic() - began)
                    texts += len(window)
                if time.monotonic() >= until:
                    return
        except EngineDied as error:
            faults.append(error)

    try:
        for engine in engines:
            engine.ask(Job("threads", str(threads)), DEADLINE_S)
    except EngineDied as error:
        faults.append(error)
    drivers = [threading.Thread(target=drive, args=(engine,)) for engine in engines]
    began = time.monotonic()
    until = began + seconds
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    if faults:
        raise EngineFailed(f"an engine failed while this machine was measured: {faults[0]}")
    return texts / (time.monotonic() - began), statistics.median(took)


def _windows(tokens: int) -> list[list[str]]:
    """Windows of about that many tokens each, of texts that differ."""
    chance = np.random.default_rng(7)
    windows = []
    for _ in range(8):
        window: list[str] = []
        left = tokens
        while left > 0:
            count = min(MOST_WORDS, max(1, round(MEDIAN_WORDS * chance.lognormal(0, SPREAD))))
            window.append(" ".join(chance.choice(WORDS, count)))
            left -= tokens_of(window[-1])
        windows.append(window)
    return windows


@contextmanager
def _engines(start: Start, most: int) -> Iterator[list[EngineProcess]]:
    """Up to `most`; two at most on a GPU, where one reads tokens while the other computes."""
    engines: list[EngineProcess] = []
    try:
        engines.append(EngineProcess(start, 1))
        if engines[0].wait_ready().device.startswith("cuda"):
            most = min(most, 2)
        engines += [EngineProcess(start, 1, tell=False) for _ in range(most - 1)]
        for engine in engines[1:]:
            engine.wait_ready()
        yield engines
    finally:
        for engine in engines:
            engine.end()


def _path(of: dict[str, str | int], cache_dir: Path) -> Path:
    digest = hashlib.sha256(msgspec.json.encode(sorted(of.items()))).hexdigest()[:16]
    return cache_dir / FOLDER / f"{digest}.json"


def cores() -> int:
    """That this process may use: affinity, and a container's share of time, which would only be waited for."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(ours, int(quota) // int(period)))
    except (OSError, ValueError):  # no such limit
        return ours


def _cpu() -> str:
    return _found("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


def _room() -> int:
    """Engines that memory has room for, if half of what is free stays free."""
    free = int(_found("/proc/meminfo", r"^MemAvailable:\s+(\d+) kB") or 0) * 1024
    return max(1, free // 2 // ENGINE_BYTES) if free else MOST_ENGINES


def _found(file: str, pattern: str) -> str:
    try:
        match = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""
