"""The application: the routes behind one guard that times, admits and answers failures."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from blacksheep import Application, Request, Response
from blacksheep.exceptions import MessageAborted

from streaming import metrics
from streaming.access.callers import Reason, Refused, attach
from streaming.access.guard import Guard
from streaming.lookup.handlers import Service
from streaming.lookup.openapi import document
from streaming.lookup.problems import ProblemError, problem_of
from streaming.lookup.routes import ROUTES, Handler, Scope
from streaming.settings import Settings

# The label of metrics for paths that are no route: callers choose those, and metrics must stay few.
NO_ROUTE = "none"

_STATUS: dict[Reason, HTTPStatus] = {
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "missing-scope": HTTPStatus.FORBIDDEN,
    "wrong-namespace": HTTPStatus.FORBIDDEN,
    "not-this-host": HTTPStatus.FORBIDDEN,
    "rate-limited": HTTPStatus.TOO_MANY_REQUESTS,
    "issuer-unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


def application(settings: Settings, stopping: asyncio.Event) -> Application:
    """An ASGI application that opens its connections at start and closes them at stop. Call it where
    the event loop runs that will serve. Streams end when `stopping` is set.

    Raises:
        SettingsError: the keys file can't be read.
    """
    guard = Guard(settings)
    service = Service.open(settings, stopping, openapi=msgspec.json.encode(document()))
    app = Application()
    for route in ROUTES:
        app.router.add(route.method, route.path, _guarded(service, guard, route.path, route.handler, route.scope))

    async def no_route(_: Service, request: Request) -> Response:
        allowed = sorted({route.method for route in ROUTES if _serves(app, route.method, request)})
        if not allowed:
            raise ProblemError(HTTPStatus.NOT_FOUND, "no-such-path", "see /openapi.json for the paths that there are")
        raise ProblemError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "method-not-allowed",
            f"this path takes {', '.join(allowed)}",
            headers=((b"Allow", ", ".join(allowed).encode()),),
        )

    app.router.fallback = _guarded(service, guard, NO_ROUTE, no_route, None)
    watching: list[asyncio.Task[None]] = []

    async def start(_: Application) -> None:
        watching.append(asyncio.create_task(guard.watch()))

    async def stop(_: Application) -> None:
        for task in watching:
            task.cancel()
        await service.close()

    app.on_start += start
    app.on_stop += stop
    return app


def _serves(app: Application, method: str, request: Request) -> bool:
    return app.router.get_matching_route(method, request.url.path) is not None


def _guarded(
    service: Service, guard: Guard, path: str, handler: Handler, scope: Scope | None
) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        started = time.perf_counter()
        try:
            if scope is not None:
                await _admit(guard, request, scope)
            response = await handler(service, request)
        except MessageAborted:  # the caller has gone, so this is for the metrics alone
            gone = ProblemError(HTTPStatus.BAD_REQUEST, "body-cut", "the connection ended before the body did")
            response = gone.response()
        except Exception as error:  # noqa: BLE001  the last guard: whatever it was, the caller gets a problem
            response = problem_of(error, path).response()
        # A method that is no route's is the caller's word, too.
        method = request.method if path != NO_ROUTE else NO_ROUTE
        metrics.HTTP_SECONDS.labels(path, method, response.status).observe(time.perf_counter() - started)
        return response

    return guarded


async def _admit(guard: Guard, request: Request, scope: Scope) -> None:
    """Raises:
    ProblemError: the caller may not do this.
    """
    authorization = request.get_first_header(b"Authorization") or b""
    try:
        caller = await guard.admit(authorization, request.get_first_header(b"Host") or b"", scope)
    except Refused as refused:
        headers: tuple[tuple[bytes, bytes], ...] = ()
        match refused.reason:  # what RFC 6750 asks for
            case "unauthorized":
                headers = ((b"WWW-Authenticate", b'Bearer error="invalid_token"' if authorization else b"Bearer"),)
            case "missing-scope":
                headers = ((b"WWW-Authenticate", f'Bearer error="insufficient_scope", scope="{scope}"'.encode()),)
            case "rate-limited":
                headers = ((b"Retry-After", str(math.ceil(refused.retry_after_s)).encode()),)
        field = "Authorization" if refused.reason == "unauthorized" else None
        raise ProblemError(
            _STATUS[refused.reason], refused.reason, str(refused), field=field, headers=headers
        ) from None
    attach(request, caller)
