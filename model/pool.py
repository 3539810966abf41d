"""Engines in processes of their own, behind one queue and one memory of texts: what a worker scores through.

    threads that ask -> memory of texts, disk (orders) -> queue of windows -> one thread an engine -> its process

An engine that dies, hangs or raises at a window gets another try at it, or another engine does; what fails twice is
halved until the text that does it stands alone and is refused. Whoever waits, waits on; nothing is lost. A text that
is remembered never crosses to another process.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.cache import Evidence, embedding_cache, evidence_cache, remembered
from model.disk_cache import DiskCache
from model.engine_process import EngineDied, EngineProcess, EngineRaised, Job, Kind, Label, Ready, Start
from model.errors import EngineFailed, ModelError, TextRefused
from model.queue import Window, WindowQueue
from model.taxonomy import Source

log = logging.getLogger(__name__)

# Of the memory of texts, as in `model.engine`: an embedding takes about four times what a text's evidence does, but
# only evidence is asked for in a stream; embeddings get what is left.
EMBEDDING_SHARE = 0.25
# A window's time. On a machine with four times its load a process made 200 tokens/s; a hang should cost a stream
# less than Kafka's patience with it, five minutes.
DEADLINE_S = 20.0
TOKENS_PER_S = 50
# Starts that fail one after another before the pool gives up; the waits between them are for memory to come free.
START_WAITS_S = (0.5, 3.0)
# Refused texts that are known by their digests, so that who bisects for one does not meet it again and again.
MOST_REFUSED = 1024
LOAD = "model.engine_process:load"
# What every engine can take; asked before a text is blamed.
PROBE = "Where is my parcel?"

Array = NDArray[np.float32]


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`engines` processes of `threads` threads each; windows of at most `window_tokens` tokens, which wait at most
    `window_ms`; memory for `cache_mb` MB of answers, and `disk_mb` MB on disk in `cache_dir` for those to orders'
    descriptions (0: none)."""

    engines: int
    threads: int
    window_tokens: int = 2048
    window_ms: float = 2.0
    cache_mb: int = 64
    disk_mb: int = 0
    cache_dir: Path = Path()
    deadline_s: float = DEADLINE_S


class EnginePool:
    """Scores like one `Engine`, from any number of threads. A context manager; leaving it ends the processes.

    Args:
        start: how each process loads its engine; with `load` of `LOAD`, arguments of `Engine.load` in msgpack's
            types, the folder as text. Turn the engines' own memory of texts off (`cache_mb` 0).

    Raises:
        ModelError: what loading the engine raises; EngineFailed, when its processes end while they start.
    """

    def __init__(self, start: Start, options: PoolOptions) -> None:
        self.options = options
        self._start = start
        self._queue = WindowQueue(options.engines, options.window_tokens, options.window_ms)
        self._processes: dict[int, EngineProcess] = {}  # by the number of their owner
        self._closing = False
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()  # of _restarts and _refused
        self._restarts = 0
        started: list[Future[Ready]] = [Future() for _ in range(options.engines)]
        self._owners = [
            threading.Thread(target=self._own, args=(number, future), name=f"engine-{number}", daemon=True)
            for number, future in enumerate(started)
        ]
        for owner in self._owners:
            owner.start()
        try:
            self.ready = [future.result() for future in started][-1]
        except BaseException:
            self._end()
            raise
        self.version = self.ready.version
        self.device = self.ready.device
        self.labels = self.ready.labels
        self.label_refs: Sequence[Label] = self.ready.label_refs
        limit = options.cache_mb * 2**20
        self._embeddings = embedding_cache(int(limit * EMBEDDING_SHARE))
        self._evidence = evidence_cache(limit - self._embeddings.max_bytes)
        self._disk = DiskCache(options.cache_dir, self.version, options.disk_mb * 2**20) if options.disk_mb else None

    def evidence(self, texts: Sequence[str], source: Source) -> list[Evidence]:
        """See `Engine.evidence`. Blocks while engines have more to do than may wait.

        Raises:
            TextRefused: engines fail on some of the texts; the others' answers are remembered.
            EngineFailed: they fail on everything, or can't be started again.
        """
        keys = [(source, text) for text in texts]
        return remembered(self._evidence, keys, lambda missing: self._weigh([text for _, text in missing], source))

    def embed(self, texts: Sequence[str]) -> Array:
        """See `Engine.embed`. Raises as `evidence`."""
        rows = remembered(self._embeddings, texts, lambda missing: self._ask("embed", "", missing))
        return np.array(rows, np.float32).reshape(len(texts), self.ready.dim)

    def score(self, texts: Sequence[str]) -> dict[str, Array]:
        """See `Engine.score`; nothing of it is remembered. Raises as `evidence`."""
        unique = list(dict.fromkeys(texts))
        answers = dict(zip(unique, self._ask("score", "", unique), strict=True))
        rows = np.array([answers[text] for text in texts], np.float32).reshape(len(texts), len(self.label_refs))
        ends = np.cumsum([len(labels) for labels in self.labels.values()])
        return dict(zip(self.labels, np.split(rows, ends[:-1], axis=1), strict=True))

    def stats(self) -> dict[str, int]:
        """`hits`, `misses`, `bytes` and `max_bytes` as of an engine, `disk_hits`; `waiting_tokens` now; `windows`
        so far, their `window_texts` and `window_tokens`; `restarts` of processes, `engines` running."""
        evidence, embeddings, waiting = self._evidence, self._embeddings, self._queue
        return {
            "hits": evidence.hits + embeddings.hits,
            "misses": waiting.texts,
            "bytes": evidence.bytes + embeddings.bytes,
            "max_bytes": evidence.max_bytes + embeddings.max_bytes,
            "disk_hits": self._disk.hits if self._disk else 0,
            "waiting_tokens": waiting.waiting_tokens,
            "windows": waiting.windows,
            "window_texts": waiting.texts,
            "window_tokens": waiting.tokens,
            "restarts": self._restarts,
            "engines": len(self.pids()),
        }

    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [process.pid for process in list(self._processes.values()) if process.alive]

    def close(self) -> None:
        """End the processes; who waits for an answer gets EngineFailed."""
        self._end()
        if self._disk:
            self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        self._closing = True
        self._queue.close(EngineFailed("the engines are closing"))
        for process in list(self._processes.values()):
            process.kill()  # an owner that waits for its answer sees its end
        for owner in self._owners:
            owner.join()

    # --- in the threads that ask

    def _weigh(self, texts: list[str], source: Source) -> list[Evidence]:
        disk = self._disk if source == "order" else None
        known = disk.get_many(texts) if disk else {}
        missing = [text for text in texts if text not in known]
        try:
            fresh = dict(zip(missing, self._ask("evidence", source, missing), strict=True))
        except TextRefused as error:
            answered = zip(missing, error.answers, strict=True)
            self._evidence.put_many(((source, text), said) for text, said in answered if said is not None)
            raise
        if disk and fresh:
            disk.put_many(fresh.items())
        return [known[text] if text in known else fresh[text] for text in texts]

    def _ask(self, kind: Kind, about: str, texts: Sequence[str]) -> list[Any]:
        if self._refused:
            digests = [_digest(text) for text in texts]
            if found := [index for index, digest in enumerate(digests) if digest in self._refused]:
                raise TextRefused(found, [None] * len(texts))
        try:
            return self._queue.ask((kind, about), texts)
        except TextRefused as error:
            with self._lock:
                self._refused.update((_digest(texts[index]), None) for index in error.refused)
                while len(self._refused) > MOST_REFUSED:
                    self._refused.popitem(last=False)
            raise

    # --- in the thread that owns a process

    def _own(self, number: int, started: Future[Ready]) -> None:
        try:
            started.set_result(self._launch(number))
        except BaseException as error:  # noqa: BLE001  whatever it was, the pool's maker gets it
            started.set_exception(error)
            return
        window: Window | None = None
        try:
            while (window := self._queue.take()) is not None:
                self._serve(number, window)
        except Exception as error:  # noqa: BLE001  whatever it was, those who wait must hear of it
            if not self._closing:
                log.critical("engine %d is gone: %s", number, error)
            fault = error if isinstance(error, EngineFailed) else EngineFailed(f"{type(error).__name__}: {error}")
            self._queue.close(fault)
        finally:
            if window is not None:
                self._queue.put_back(window)  # of a closed queue: tells its callers
            self._processes[number].end()

    def _launch(self, number: int) -> Ready:
        process = self._processes[number] = EngineProcess(self._start, self.options.threads, tell=number == 0)
        if self._closing:
            process.kill()
        try:
            return process.wait_ready()
        except BaseException:
            process.end()
            raise

    def _serve(self, number: int, window: Window) -> None:
        """Have a window answered, or put it back: whole after a first failure, in halves after a second.

        Raises:
            EngineFailed: the process can't be replaced, or its engine fails on any text.
        """
        self._revive(number)
        try:
            window.answer(self._answers(number, window))
            return
        except EngineDied as error:
            log.warning("engine %d failed at %d texts: %s", number, len(window.items), error)
        if not window.again:
            self._queue.put_back(Window(window.lane, window.items, again=True))
            self._revive(number)
            return
        self._revive(number)
        self._probe(number)
        if len(window.items) > 1:
            self._queue.put_back(*window.halves())
        else:
            window.refuse()

    def _answers(self, number: int, window: Window) -> Sequence[Any]:
        kind, about = window.lane
        job = Job(kind, about, [item.text for item in window.items])  # type: ignore[arg-type]  # lanes are made by _ask
        within_s = self.options.deadline_s + window.tokens / TOKENS_PER_S
        try:
            answer = self._processes[number].ask(job, within_s)
        except EngineDied as error:
            # after a device's error nothing works in its process any more
            if not isinstance(error, EngineRaised) or self.device.startswith("cuda"):
                self._processes[number].end()
            raise
        if kind == "evidence":
            return answer.evidence
        return list(np.frombuffer(answer.rows, np.float32).reshape(len(job.texts), -1))

    def _probe(self, number: int) -> None:
        """
        Raises:
            EngineFailed: a fresh engine fails on a text that is known to be good.
        """
        try:
            self._processes[number].ask(Job("embed", "", [PROBE]), self.options.deadline_s)
        except EngineDied as error:
            raise EngineFailed(f"the engine fails on every text: {error}") from error

    def _revive(self, number: int) -> None:
        """Start the process again if it is not running.

        Raises:
            EngineFailed: it does not start, or the model on disk is another by now.
        """
        if self._processes[number].alive:
            return
        with self._lock:
            self._restarts += 1
        for wait_s in (0.0, *START_WAITS_S):
            if self._closing:
                raise EngineFailed("the engines are closing")
            time.sleep(wait_s)
            self._processes[number].end()
            try:
                ready = self._launch(number)
            except (ModelError, OSError) as error:  # OSError: no memory or no number for one more process
                fault = str(error)
                continue
            if ready.version != self.version:
                raise EngineFailed(f"the model's files are now {ready.version}, not {self.version}: start anew")
            return
        raise EngineFailed(fault)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
