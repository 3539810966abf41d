"""How the client for an event loop reads: again after a failure, from a replica when the first is late, in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import TypeVar

from streaming.client import calls
from streaming.client.aio_servers import AsyncCluster, AsyncConnections, AsyncServer
from streaming.client.connect import Target

T = TypeVar("T")
# What to ask of a server, and within how many seconds; None: its usual timeout
AsyncCall = Callable[[AsyncServer, float | None], Awaitable[T]]


class AsyncReader:
    """`reader.Reader` with awaits."""

    def __init__(self, options: calls.Options) -> None:
        self._options = options
        self.primary = _server(options.target, options.timeout_s)
        self._replicas: list[AsyncServer] = []
        self._prepared = False
        self._late: set[asyncio.Task[object]] = set()
        if options.hedge_after_s:
            self._replicas += [AsyncConnections(target, options.timeout_s) for target in options.replicas]
            if not self._replicas:
                self._replicas.append(_server(options.target, options.timeout_s, replica=True))

    async def read(self, call: AsyncCall[T]) -> T:
        """From the primary."""
        end = monotonic() + self._options.deadline_s
        within_s = None
        failed = 0
        while True:
            try:
                return await call(self.primary, within_s)
            except calls.FAILURES as error:
                failed += 1
                pause_s = calls.retry_pause(error, failed, end - monotonic(), self._options)
                if pause_s is None:
                    raise calls.failure(error, self._options) from None
            await asyncio.sleep(pause_s)
            within_s = min(end - monotonic(), self._options.timeout_s)

    async def read_any(self, call: AsyncCall[T]) -> tuple[T, bool]:
        """From the primary, or from a replica when that is faster; and whether it was the primary."""
        if not self._replicas:
            return await self.read(call), True
        if not self._prepared:  # when a primary hangs is too late: a cluster asks any node for its plan
            self._prepared = True
            self._start(self._prepare())
        first = self._start(self.read(call))
        await asyncio.wait((first,), timeout=self._options.hedge_after_s)
        if first.done() and first.exception() is None:
            return first.result(), True
        pending = {first, self._start(call(calls.any_of(self._replicas), None))}
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    return task.result(), task is first
        return first.result(), True  # both failed: raises what the primary's did

    async def _prepare(self) -> None:
        for server in self._replicas:
            with suppress(*calls.FAILURES):
                await server.prepare()

    def _start(self, call: Awaitable[T]) -> asyncio.Task[T]:
        """The loser of a race reads its answer to the end, so that its connection stays good."""

        async def run() -> T:
            return await call

        task = asyncio.create_task(run())
        self._late.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # seen: a loser's failure is nobody's

    async def close(self) -> None:
        late = list(self._late)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for server in (self.primary, *self._replicas):
            await server.close()


def _server(target: Target, timeout_s: float, *, replica: bool = False) -> AsyncServer:
    kind = AsyncCluster if target.kind == "cluster" else AsyncConnections
    return kind(target, timeout_s, replica=replica)
