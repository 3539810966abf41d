"""Supervision of child processes: what is started here ends here, on every way out.

A child runs in a session of its own (a Ctrl-C on the terminal reaches only limner, which then ends its
children in order), with its output in a log file of a temporary folder that also holds its data. Leaving
the `with` block ends it: SIGTERM, a bounded wait, SIGKILL. If limner is killed, `reaper` does it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from streaming.embedded import reaper
from streaming.errors import LimnerError

# Both servers answer within a quarter of a second on an idle machine; twenty allows for one that swaps.
START_S = 20.0
_POLL_S = 0.02
_TAIL_LINES = 15


class StartFailed(LimnerError):
    """A child ended or stayed silent while it started; the message holds the end of its log."""


# Below the range that Linux gives to outgoing connections (from 32768): a client that keeps dialling a
# killed server's port there can be given that very port, connect to itself, and hold it.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on at this moment."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port_is_free(port):
            return port
    raise StartFailed(f"no free TCP port between {_PORTS.start} and {_PORTS.stop - 1} on 127.0.0.1")


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Child:
    """A running process, its log, and its folder. A context manager; `stop` may be called again."""

    # After SIGTERM. A worker finishes its batch and commits, which takes a chat batch's forward pass.
    grace_s = 10.0

    def __init__(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, in_own_folder: bool = True
    ) -> None:
        """Start `argv`, `env` added to this process's environment, in its own folder or in the current one.

        Raises:
            StartFailed: the program can't be executed.
        """
        self.name = name
        self._argv = list(argv)
        self._env = {**os.environ, **(env or {})}
        self.folder = Path(tempfile.mkdtemp(prefix=f"limner-{name.replace(' ', '-')}-"))
        self._cwd = self.folder if in_own_folder else Path.cwd()
        _tell_reaper(f"folder {self.folder}")
        try:
            self._launch()
        except OSError as error:
            self._remove_folder()
            raise StartFailed(f"{name} can't be started: {self._argv[0]}: {error.strerror}") from error

    def _launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                cwd=self._cwd, env=self._env, start_new_session=True,
            )  # fmt: skip
        _tell_reaper(f"group {self.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.poll()

    def wait_ready(self, answers: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Ask `answers` until it is true.

        Raises:
            StartFailed: the process ended, or `timeout_s` passed; it is stopped and its folder removed.
        """
        deadline = time.monotonic() + timeout_s
        while not answers():
            code = self.exit_code
            if code is not None or time.monotonic() > deadline:
                fault = f"ended with code {code}" if code is not None else f"did not answer within {timeout_s:.0f} s"
                tail = self.tail()
                self.stop()
                raise StartFailed(f"{self.name} {fault}; the end of its log:\n{tail}")
            time.sleep(_POLL_S)

    def tail(self) -> str:
        """The last lines of what it wrote to stdout and stderr."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:]) or "(it wrote nothing)"

    def kill(self) -> None:
        """SIGKILL, as a crash would; the folder stays, so that `restart` finds the data."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        _tell_reaper(f"forget {self.pid}")

    def restart(self) -> None:
        """Start it again as it was, over the same folder, after `kill` or its own end."""
        self.kill()
        self._launch()

    def stop(self) -> None:
        """End it and what it started (its process group), and remove its folder."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.grace_s)
        self.kill()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        _tell_reaper(f"forget {self.folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_reaper_pipe: int | None = None


def _tell_reaper(line: str) -> None:
    """One reaper serves all children of this process; it starts with the first of them."""
    global _reaper_pipe
    if _reaper_pipe is None:
        its_end, _reaper_pipe = os.pipe()
        os.posix_spawn(
            sys.executable, [sys.executable, "-I", "-S", reaper.__file__], os.environ, setsid=True,
            file_actions=[(os.POSIX_SPAWN_DUP2, its_end, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )  # fmt: skip
        os.close(its_end)
    with contextlib.suppress(BrokenPipeError):  # someone killed it: leaving the `with` block still cleans up
        os.write(_reaper_pipe, f"{line}\n".encode())
