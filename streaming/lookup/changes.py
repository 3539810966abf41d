"""Streams of server-sent events: a profile, or an audience, each time it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any

import msgspec
from blacksheep import Request, Response, StreamedContent

from streaming.errors import StoreUnavailable
from streaming.lookup.notices import Notices
from streaming.lookup.problems import ProblemError, problem_of

# A stream costs two sockets' memory and nothing while nothing changes. An eighth of the connections that the server
# takes.
MAX_STREAMS = 512
# Proxies close a connection that is silent for a minute, some for 30 s. Decay and what a notice missed show then.
HEARTBEAT_S = 15.0
# A customer in the middle of a chat changes several times a second; a reader wants the last state, not each.
PAUSE_S = 0.2

_HEADERS = ((b"Cache-Control", b"no-cache"), (b"X-Accel-Buffering", b"no"))  # the latter: nginx must not gather

# The answer's head goes out with its first part. A client whose stream ends comes back after this.
_OPENING = b"retry: 1000\n\n"

# What there is to tell now, bytes of an event or nothing, and the keys that may change it.
Produce = Callable[[], Awaitable[tuple[bytes, Collection[bytes]]]]


class Streams:
    """All open streams of a process."""

    def __init__(self, notices: Notices, stopping: asyncio.Event) -> None:
        self._notices = notices
        self._stopping = stopping
        self._open = 0

    def response(self, request: Request, route: str, produce: Produce) -> Response:
        """A stream of what `produce` gives, now and whenever one of its keys changes.

        Raises:
            ProblemError: 503, `MAX_STREAMS` are open.
        """
        if self._open >= MAX_STREAMS:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE, "too-many-streams", f"{self._open} streams are open: try again later"
            )

        async def events() -> AsyncIterator[bytes]:
            async for event in self._events(request, route, produce):
                yield event

        return Response(HTTPStatus.OK.value, list(_HEADERS), StreamedContent(b"text/event-stream", events))

    async def _events(self, request: Request, route: str, produce: Produce) -> AsyncIterator[bytes]:
        self._open += 1
        gone = asyncio.create_task(_gone(request, self._stopping))
        try:
            yield _OPENING
            with self._notices.watching() as watch:
                while not gone.done():
                    watch.changed.clear()
                    try:
                        event, keys = await produce()
                        watch.follow(keys)
                    except StoreUnavailable as error:  # it may come back; the stream goes on
                        event = sse("problem", problem_of(error, route).problem)
                    if event:
                        yield event
                        await asyncio.wait([gone], timeout=PAUSE_S)
                    if not await _either(watch.changed, gone, HEARTBEAT_S):
                        yield b": still here\n\n"
        finally:
            gone.cancel()
            self._open -= 1


def sse(event: str, data: Any, event_id: bytes | None = None) -> bytes:
    """One event. JSON has no line breaks, so its data is one line."""
    head = b"id: %b\n" % event_id if event_id else b""
    return head + b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(data))


async def _either(changed: asyncio.Event, gone: asyncio.Task[None], timeout_s: float) -> bool:
    """Wait for one of both; False when neither comes."""
    change = asyncio.create_task(changed.wait())
    try:
        done, _ = await asyncio.wait([change, gone], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        change.cancel()


async def _gone(request: Request, stopping: asyncio.Event) -> None:
    """Return when the caller has left, or the service stops."""
    content: Any = request.content  # ASGI's receive stands there, which BlackSheep's types leave out

    async def left() -> None:
        while (await content.receive())["type"] != "http.disconnect":
            pass

    either = [asyncio.create_task(left()), asyncio.create_task(stopping.wait())]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in either:
            task.cancel()
