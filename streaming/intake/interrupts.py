"""Ctrl-C between steps, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class WholeSteps:
    """`with steps:` around what must not be cut in two: a Ctrl-C that comes there is raised at its end.

    Python runs its signal handler wherever it is, so also on entry to the callback in which Kafka's client reports
    a delivery: that report would be lost, and an event that Kafka has would not be counted. Has an effect only
    within `watching`, and there only on the main thread, which alone gets signals.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._within = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._within:
            self.interrupted = True
        else:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._within = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._within = False
        if self.interrupted and error is None:
            self.interrupted = False
            raise KeyboardInterrupt
