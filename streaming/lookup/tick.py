"""Look-ups that arrive in one turn of the event loop share one MGET; so do those that wait for an event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from streaming.client.aio_reader import AsyncReader
from streaming.client.errors import NotYetVisible
from streaming.client.tokens import Token, holds
from streaming.profiles import fold
from streaming.profiles.keys import profile_key

# As many as one reply of about 1 MB holds; more at once would delay the first of them.
MAX_SHARED = 500

# An event takes 20 to 50 ms from its acknowledgement to its merge: asking every 5 ms adds a tenth to that.
POLL_S = 0.005
# Who has waited long learns of it later by an eighth of the time waited, and costs less.
POLL_SHARE = 8

Known = dict[str, bytes | None]  # id -> its stored profile


class SharedReader:
    """Stored profiles by customer id. What is asked before the loop's next turn goes to Redis together;
    one alone waits for nothing but that turn. Every method raises StoreUnavailable."""

    def __init__(self, reader: AsyncReader, namespace: str) -> None:
        self._reader = reader
        self._namespace = namespace
        self._asked: dict[str, list[asyncio.Future[bytes | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, customer_id: str) -> bytes | None:
        """What is stored under one id."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send)
        self._asked.setdefault(customer_id, []).append(future)
        return await future

    async def read_person(self, customer_id: str) -> Known:
        """What is stored under an id and those that it is linked with, for `fold.fold`."""
        stored = await self.read(customer_id)
        known: Known = {customer_id: stored}
        if stored is None or not fold.neighbours(stored):  # most
            return known
        while missing := fold.missing(customer_id, known):
            known.update(zip(missing, await asyncio.gather(*map(self.read, missing)), strict=True))
        return known

    async def read_people(self, ids: Iterable[str]) -> Known:
        """The same of many, in a round trip for each step that links lead away from them."""
        asked = list(dict.fromkeys(ids))
        known: Known = {}
        missing = asked
        while missing:
            known.update(zip(missing, await self._read_many(missing), strict=True))
            missing = list({other for id_ in asked for other in fold.missing(id_, known)})
        return known

    async def wait_for(self, token: Token, wait_s: float) -> None:
        """Until the stored profile of the token's customer holds the token's event.

        Raises:
            NotYetVisible: it did not within `wait_s`.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        before: bytes | None = None
        while True:
            stored = await self.read(token.customer_id)
            if stored is not None and stored != before and holds(stored, token):
                return
            before = stored
            waited = loop.time() - started
            if waited >= wait_s:
                raise NotYetVisible(token.customer_id, token.topic, token.partition, token.offset, wait_s)
            # All who wait wake on the same beat or on every second, fourth, ... one, so that they ask in one turn.
            steps = max(1, int(waited / POLL_SHARE / POLL_S))
            beat = POLL_S * (1 << (steps.bit_length() - 1))
            await asyncio.sleep(min(beat - loop.time() % beat, wait_s - waited))

    def _send(self) -> None:
        asked, self._asked = self._asked, {}
        ids = list(asked)
        for start in range(0, len(ids), MAX_SHARED):
            task = asyncio.create_task(self._answer({key: asked[key] for key in ids[start : start + MAX_SHARED]}))
            self._tasks.add(task)  # the loop itself keeps no task alive
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: dict[str, list[asyncio.Future[bytes | None]]]) -> None:
        try:
            found = await self._read_many(list(asked))
        except Exception as error:  # noqa: BLE001  whatever it was, those who wait must hear of it
            for future in (future for futures in asked.values() for future in futures):
                if not future.done():
                    future.set_exception(error)
            return
        for stored, futures in zip(found, asked.values(), strict=True):
            for future in futures:
                if not future.done():  # its caller may have gone
                    future.set_result(stored)

    async def _read_many(self, ids: Sequence[str]) -> list[bytes | None]:
        keys = [profile_key(self._namespace, customer_id) for customer_id in ids]
        return await self._reader.read(lambda server, within_s: server.many(keys, within_s))
