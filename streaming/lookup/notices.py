"""Notices of keys that changed in Redis, by its client-side caching: it remembers which keys a connection has
read, and tells that connection when one of them changes. Every Redis since 6.0 and every Valkey does so without
configuration. While no such connection can be had, watchers are woken every `RETRY_S` and look for themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ConnectionError

from streaming import logs
from streaming.client.aio_reader import AsyncReader
from streaming.client.calls import FAILURES

# A reader that looks at a screen does not see a second; a Redis that is away is not asked more often.
RETRY_S = 1.0
# A connection that died without a word is noticed within twice this.
CHECK_S = 5.0

_log = logs.get(__name__)


class Watch:
    """`changed` is set when a key followed may have changed, and to begin with. Clear it, then read."""

    def __init__(self, notices: Notices) -> None:
        self.changed = asyncio.Event()
        self.changed.set()
        self.keys: frozenset[bytes] = frozenset()
        self._notices = notices

    def follow(self, keys: Iterable[bytes]) -> None:
        """From now on these keys and no others."""
        before, self.keys = self.keys, frozenset(keys)
        self._notices.move(self, before, self.keys)


class Notices:
    """For one event loop. Connects when the first watcher comes, and stays connected."""

    def __init__(self, reader: AsyncReader) -> None:
        self._reader = reader
        self._watches: dict[bytes, set[Watch]] = {}
        self._to_arm: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        watch = Watch(self)
        try:
            yield watch
        finally:
            watch.follow(())

    def move(self, watch: Watch, before: frozenset[bytes], after: frozenset[bytes]) -> None:
        for key in after - before:
            self._watches.setdefault(key, set()).add(watch)
            self._to_arm.put_nowait(key)
        for key in before - after:
            self._watches[key].discard(watch)
            if not self._watches[key]:
                del self._watches[key]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        warned = False
        while True:
            try:
                await self._listen()
            except FAILURES as error:
                if not warned:
                    warned = True
                    _log.warning("no notices of changes from Redis, looking every second", error=str(error))
            else:
                warned = False
            self._wake(self._watches)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        """Until the connection fails, which raises."""
        connection: Any = await self._reader.primary.announcing("")
        armed: deque[list[bytes]] = deque()
        tasks: list[asyncio.Task[None]] = []
        try:
            connection._get_parser().set_invalidation_push_handler(_as_it_came)
            async with asyncio.timeout(CHECK_S):
                await connection.connect()
                await connection.send_command("CLIENT", "TRACKING", "ON")
                await connection.read_response()
            for key in self._watches:
                self._to_arm.put_nowait(key)
            tasks += (
                asyncio.create_task(self._arm(connection, armed)),
                asyncio.create_task(self._hear(connection, armed)),
            )
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connection.disconnect(nowait=True)

    async def _arm(self, connection: Any, armed: deque[list[bytes]]) -> None:
        """Read each key that is to be armed; whether it is there (yet) does not matter to Redis."""
        while True:
            keys: set[bytes] = set()
            try:
                async with asyncio.timeout(CHECK_S):
                    keys.add(await self._to_arm.get())
            except TimeoutError:
                if armed:
                    raise ConnectionError("no sign of life") from None
            while not self._to_arm.empty():
                keys.add(self._to_arm.get_nowait())
            watched = [key for key in keys if key in self._watches]
            if not connection.is_connected:  # a command would connect anew, untracked
                raise ConnectionError("closed")
            armed.append(watched)
            await connection.send_command(*(("EXISTS", *watched) if watched else ("PING",)), check_health=False)

    async def _hear(self, connection: Any, armed: deque[list[bytes]]) -> None:
        while True:
            message = await connection.read_response(disconnect_on_error=False, push_request=True)
            if isinstance(message, list):  # ["invalidate", [key, ...]], or None for all keys
                for key in self._watches if message[1] is None else message[1]:
                    self._to_arm.put_nowait(key)
            else:  # the answer to what was sent first: from now on, a change brings a notice of its own
                self._wake(armed.popleft())

    def _wake(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            for watch in self._watches.get(key, ()):
                watch.changed.set()


async def _as_it_came(message: Any) -> Any:
    return message
