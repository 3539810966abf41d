"""What every request is held to and every answer carries, whichever route it is: an ASGI application around another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from streaming.lookup.problems import ProblemError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# A body of 4 MiB, the largest, takes this long at 1.7 Mbit/s. Who sends slower holds memory for others' loss.
BODY_S = 20.0

# Answers are one caller's and hold no page: nothing may keep them, show them in a frame, or guess their type.
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"server", b"limner"),  # else the server's name, which changes with its version
    (b"x-content-type-options", b"nosniff"),
)
# Of HTTPS: a browser that was here once does not come by HTTP again for a year.
HSTS = (b"strict-transport-security", b"max-age=31536000")


def guarded(app: App, *, https: bool, body_s: float = BODY_S) -> App:
    """`app` with a time limit on bodies, and with `HEADERS` on answers that do not say otherwise themselves."""
    defaults = (*HEADERS, HSTS) if https else HEADERS

    async def run(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + body_s
        is_here = False

        async def receive_in_time() -> Message:
            nonlocal is_here
            if is_here:  # a stream of answers waits for what comes then: that the caller has left
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ProblemError(
                    HTTPStatus.REQUEST_TIMEOUT, "body-too-slow", f"the body must be here within {body_s:g} s"
                ) from None
            is_here = not message.get("more_body", False)
            return message

        async def send_with_defaults(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                told = {name.lower() for name, _ in headers}
                headers += [default for default in defaults if default[0] not in told]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive_in_time, send_with_defaults)

    return run
