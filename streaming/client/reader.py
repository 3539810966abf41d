"""How the client for threads reads: again after a failure, from a replica when the first answer is late, in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from time import monotonic
from typing import TypeVar

from streaming.client import calls
from streaming.client.connect import Target
from streaming.client.servers import Cluster, Connections, Server

# Look-ups under way at once while hedging is on, two of them for each that is late; more wait for a thread.
HEDGE_THREADS = 64

T = TypeVar("T")
# What to ask of a server, and within how many seconds; None: its usual timeout
Call = Callable[[Server, float | None], T]


class Reader:
    """Raises StoreUnavailable when no server answered in time."""

    def __init__(self, options: calls.Options) -> None:
        self._options = options
        self.primary = _server(options.target, options.timeout_s)
        self._replicas: list[Server] = []
        self._threads: ThreadPoolExecutor | None = None
        if options.hedge_after_s:
            self._replicas += [Connections(target, options.timeout_s) for target in options.replicas]
            if not self._replicas:
                self._replicas.append(_server(options.target, options.timeout_s, replica=True))
            self._prepared = False
            self._threads = ThreadPoolExecutor(HEDGE_THREADS, "limner-hedge")

    def read(self, call: Call[T]) -> T:
        """From the primary."""
        end = monotonic() + self._options.deadline_s
        within_s = None
        failed = 0
        while True:
            try:
                return call(self.primary, within_s)
            except calls.FAILURES as error:
                failed += 1
                pause_s = calls.retry_pause(error, failed, end - monotonic(), self._options)
                if pause_s is None:
                    raise calls.failure(error, self._options) from None
            time.sleep(pause_s)
            within_s = min(end - monotonic(), self._options.timeout_s)

    def read_any(self, call: Call[T]) -> tuple[T, bool]:
        """From the primary, or from a replica when that is faster; and whether it was the primary."""
        if self._threads is None:
            return self.read(call), True
        end = monotonic() + self._options.deadline_s
        if not self._prepared:  # when a primary hangs is too late: a cluster asks any node for its plan
            self._prepared = True
            self._threads.submit(self._prepare)
        first = self._threads.submit(self.read, call)
        wait((first,), self._options.hedge_after_s)
        if first.done() and first.exception() is None:
            return first.result(), True
        replica = calls.any_of(self._replicas)
        pending: set[Future[T]] = {first, self._threads.submit(call, replica, None)}
        while pending and (left_s := end - monotonic()) > 0:
            done, pending = wait(pending, left_s, FIRST_COMPLETED)
            for future in done:
                if future.exception() is None:
                    return future.result(), future is first
        if first.done() and (error := first.exception()):
            raise error
        raise calls.failure(TimeoutError(), self._options)

    def _prepare(self) -> None:
        for server in self._replicas:
            with suppress(*calls.FAILURES):
                server.prepare()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for server in (self.primary, *self._replicas):
            server.close()


def _server(target: Target, timeout_s: float, *, replica: bool = False) -> Server:
    kind = Cluster if target.kind == "cluster" else Connections
    return kind(target, timeout_s, replica=replica)
