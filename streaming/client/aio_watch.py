"""The connections on which servers announce changes to the cache of the client for an event loop: a task each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from redis.exceptions import ConnectionError

from streaming.client.cache import BEAT_S, TRUST_S, ProfileCache
from streaming.client.calls import FAILURES
from streaming.client.servers import Connection
from streaming.client.watch import RECONNECT_S

_log = logging.getLogger("limner.client")  # as in `watch`


class AsyncWatch:
    """`watch.Watch` in tasks."""

    def __init__(self, cache: ProfileCache, connect: Callable[[str], Awaitable[Connection | None]]) -> None:
        self.cache = cache
        self._connect = connect
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = False

    def ensure(self, source: str) -> None:
        """Have `source` watched; returns at once."""
        task = self._tasks.get(source)
        if self._stopped or (task is not None and not task.done()):
            return
        self.cache.lost(source)
        self._tasks[source] = asyncio.create_task(self._run(source))

    async def close(self) -> None:
        self._stopped = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, source: str) -> None:
        warned = False
        while True:
            try:
                connection = await self._connect(source)
                if connection is None:
                    self.cache.gone(source)
                    return
                try:
                    await self._listen(connection, source)
                finally:
                    self.cache.lost(source)
                    await connection.disconnect(nowait=True)
            except FAILURES as error:
                if not warned:
                    warned = True
                    _log.warning("the profile cache is empty until its connection is back: %s", error or "timeout")
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self, connection: Connection, source: str) -> None:
        """Until the connection breaks, or gives no sign of life for TRUST_S."""
        connection._get_parser().set_invalidation_push_handler(_as_it_came)
        async with asyncio.timeout(TRUST_S):
            await connection.connect()
            await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self.cache.prefix)
            await connection.read_response()
        while True:
            if not connection.is_connected:  # a command would connect anew, untracked
                raise ConnectionError("closed")
            asked_at = monotonic()
            async with asyncio.timeout(TRUST_S):
                await connection.send_command("PING", check_health=False)
                while not await self._hear(connection):
                    pass
            self.cache.keep_trusting(source, asked_at)
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    while True:
                        await self._hear(connection)

    async def _hear(self, connection: Connection) -> bool:
        """Take the next message; whether it was the answer to a PING."""
        message = await connection.read_response(disconnect_on_error=False, push_request=True)
        if isinstance(message, list):  # ["invalidate", [key, ...] or None]
            self.cache.changed(message[1])
        return isinstance(message, bytes)


async def _as_it_came(message: Any) -> Any:
    return message
