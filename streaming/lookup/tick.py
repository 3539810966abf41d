"""Look-ups that arrive in one turn of the event loop share one MGET."""

from __future__ import annotations

import asyncio

from streaming.client import AsyncProfileClient, LimnerError, Profile, ProfileUnreadable

# As many as one reply of about 1 MB holds; more at once would delay the first of them.
MAX_SHARED = 500


class SharedReader:
    """`get` of an `AsyncProfileClient`, gathered: what is asked before the loop's next turn goes to
    Redis together. One alone waits for nothing but that turn."""

    def __init__(self, client: AsyncProfileClient) -> None:
        self._client = client
        self._waiting: dict[str, list[asyncio.Future[Profile | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, customer_id: str) -> Profile | None:
        """Raises as `AsyncProfileClient.get`; `customer_id` has been checked."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Profile | None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.setdefault(customer_id, []).append(future)
        return await future

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        ids = list(waiting)
        for start in range(0, len(ids), MAX_SHARED):
            task = asyncio.create_task(self._read({key: waiting[key] for key in ids[start : start + MAX_SHARED]}))
            self._tasks.add(task)  # the loop itself keeps no task alive
            task.add_done_callback(self._tasks.discard)

    async def _read(self, waiting: dict[str, list[asyncio.Future[Profile | None]]]) -> None:
        try:
            found = await self._client.get_many(waiting)
        except LimnerError as error:
            if isinstance(error, ProfileUnreadable) and len(waiting) > 1:  # it must not fail the others
                await asyncio.gather(*(self._read({key: futures}) for key, futures in waiting.items()))
                return
            for future in (future for futures in waiting.values() for future in futures):
                if not future.done():
                    future.set_exception(error)
            return
        for customer_id, futures in waiting.items():
            for future in futures:
                if not future.done():  # its caller may have gone
                    future.set_result(found[customer_id])
