"""One engine in a process of its own, at the other end of a socket: `EngineProcess` is the parent's side, `main` the
child's.

The child ends with its parent, however that ends: its socket closes, and the kernel is told to kill it (which also
ends a child that hangs). It takes one window at a time and answers it.

    parent to child   Start, then Job after Job
    child to parent   Ready | Failed, then of each Job Answer | Fault; Said any time in between
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import msgspec

from model import errors
from model.errors import EngineFailed, ModelError

log = logging.getLogger(__name__)

# Conversion of the base model may come first, with a download of 91 MB, and then the checksum of 470 MB.
START_S = 600.0
# Engines give way to the event loop, broker and store beside them on a full machine; alone they lose nothing.
NICENESS = 5
# Where memory runs out, an engine is easier to replace than the worker, whose own score is 0.
OOM_SCORE = 500
_PR_SET_PDEATHSIG = 1

Kind = Literal["evidence", "embed", "score", "threads"]


class Label(msgspec.Struct, frozen=True, array_like=True):
    """What an index in evidence stands for."""

    facet: str
    label: str
    half_life_ms: int


class Start(msgspec.Struct, tag=True):
    """`load` names a function, "module:name", that returns an engine for `arguments`."""

    load: str
    arguments: dict[str, Any]


class Job(msgspec.Struct, array_like=True):
    """`texts` to answer; `about` is the source of "evidence", the number of "threads"."""

    kind: Kind
    about: str = ""
    texts: Sequence[str] = ()


class Ready(msgspec.Struct, tag=True):
    version: str
    device: str
    dim: int
    labels: dict[str, list[str]]
    label_refs: list[Label]


class Failed(msgspec.Struct, tag=True):
    """The engine can't be loaded: a class of `model.errors`, and its words."""

    error: str
    words: str


class Answer(msgspec.Struct, tag=True):
    """Evidence of each text, or a float32 matrix with a row a text."""

    evidence: list[tuple[tuple[int, float], ...]] = []
    rows: bytes = b""


class Fault(msgspec.Struct, tag=True):
    """The engine raised this; an exception's words may quote a text, so only its type is told."""

    error: str


class Said(msgspec.Struct, tag=True):
    """A log record."""

    level: int
    logger: str
    words: str


_Told = Ready | Failed | Answer | Fault | Said
_decode = msgspec.msgpack.Decoder(_Told).decode
_decode_start = msgspec.msgpack.Decoder(Start).decode
_decode_job = msgspec.msgpack.Decoder(Job).decode
_encode = msgspec.msgpack.Encoder().encode


class EngineDied(Exception):
    """The process ended or gave no answer in time."""


class EngineRaised(EngineDied):
    """Its engine raised; the process is there."""


class EngineProcess:
    """Starts a process, which loads its engine; `wait_ready` comes next. It belongs to the thread that made it, which
    must live as long: the kernel takes that thread's end for the end of the parent. Others may only `kill`.
    """

    def __init__(self, start: Start, threads: int, *, tell: bool = True) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "model.engine_process", str(its.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[its.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
                     "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)},
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        self._start = start
        self._tell = tell

    def wait_ready(self) -> Ready:
        """
        Raises:
            ModelError: what loading raised; EngineFailed, when the process ended or hung instead.
        """
        try:
            self._connection.send_bytes(_encode(self._start))
            said = self._receive(START_S)
        except (EngineDied, OSError) as error:
            raise EngineFailed(f"an engine process did not start: {error}") from None
        if isinstance(said, Failed):
            raise getattr(errors, said.error, EngineFailed)(said.words)
        if not isinstance(said, Ready):
            raise EngineFailed("an engine process said what it should not")
        return said

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: Job, within_s: float) -> Answer:
        """
        Raises:
            EngineRaised: its engine did; it can be asked again.
            EngineDied: it ended, or did not answer in time.
        """
        try:
            self._connection.send_bytes(_packed(job))
        except OSError as error:
            raise EngineDied(self._ending()) from error
        said = self._receive(within_s)
        if isinstance(said, Fault):
            raise EngineRaised(f"it raised {said.error}")
        if not isinstance(said, Answer):
            raise EngineDied("it said what it should not")
        return said

    def kill(self) -> None:
        """It keeps nothing that needs an orderly end."""
        self._process.kill()

    def end(self) -> None:
        self.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self, within_s: float) -> Ready | Failed | Answer | Fault:
        deadline = time.monotonic() + within_s
        while True:
            try:
                if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                    raise EngineDied(f"it gave no answer within {within_s:.0f} s")
                said: _Told = _decode(self._connection.recv_bytes())
            except (EOFError, OSError, msgspec.MsgspecError) as error:
                raise EngineDied(self._ending()) from error
            if not isinstance(said, Said):
                return said
            if self._tell:
                logging.getLogger(said.logger).log(said.level, "%s", said.words)

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        if code is None:
            return "it hung up"
        return f"signal {signal.Signals(-code).name} ended it" if code < 0 else f"it ended with code {code}"


def _packed(job: Job) -> bytes:
    try:
        return _encode(job)
    except UnicodeEncodeError:  # half of a surrogate pair, as a cut JSON string leaves it; the engine reads it so too
        return _encode(Job(job.kind, job.about, [text.encode("utf-8", "replace").decode() for text in job.texts]))


class _Teller(logging.Handler):
    """Sends log records to the parent, which has the one way to log."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(logging.INFO)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._connection.send_bytes(_encode(Said(record.levelno, record.name, record.getMessage())))


def load(arguments: dict[str, Any]) -> Any:
    """The engine that a pool runs by default; `arguments` are those of `Engine.load`, the folder as text."""
    from model import Engine

    return Engine.load(**{**arguments, "cache_dir": Path(arguments["cache_dir"])})


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    _depend_on(int(sys.argv[2]))
    for signum in (signal.SIGINT, signal.SIGTERM):  # for the whole group: the parent ends in order, and we with it
        signal.signal(signum, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    logging.basicConfig(level=logging.INFO, handlers=[_Teller(connection)])
    with suppress(EOFError, OSError):  # the parent is gone
        start = _decode_start(connection.recv_bytes())
        engine = _loaded(start, connection)
        while True:
            connection.send_bytes(_encode(_answer(engine, _decode_job(connection.recv_bytes()))))


def _depend_on(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was quicker
            sys.exit()


def _loaded(start: Start, connection: Connection) -> Any:
    module, _, name = start.load.partition(":")
    try:
        engine = getattr(importlib.import_module(module), name)(start.arguments)
        ready = Ready(
            engine.version, engine.device, engine.embed([""]).shape[1], dict(engine.labels),
            [Label(ref.facet, ref.label, ref.half_life_ms) for ref in engine.label_refs],
        )  # fmt: skip
    except ModelError as error:
        connection.send_bytes(_encode(Failed(type(error).__name__, str(error))))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  whatever it was, the parent tells the user
        connection.send_bytes(
            _encode(Failed("EngineFailed", f"an engine can't be loaded: {type(error).__name__}: {error}"))
        )
        sys.exit(1)
    gc.collect()
    gc.freeze()
    connection.send_bytes(_encode(ready))
    return engine


def _answer(engine: Any, job: Job) -> Answer | Fault:
    try:
        if job.kind == "evidence":
            return Answer(evidence=engine.evidence(job.texts, job.about))
        if job.kind == "embed":
            return Answer(rows=engine.embed(job.texts).tobytes())
        if job.kind == "score":
            import numpy as np

            return Answer(rows=np.hstack(list(engine.score(job.texts).values())).tobytes())
        if torch := sys.modules.get("torch"):  # another engine than ours may have no threads to set
            torch.set_num_threads(int(job.about))
        return Answer()
    except Exception as error:  # noqa: BLE001  whatever a text does to the engine, the next may be fine
        return Fault(type(error).__name__)


if __name__ == "__main__":
    main()
