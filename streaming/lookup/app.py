"""The application: the routes behind one guard that times, admits and answers failures."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from blacksheep import Application, Request, Response

from streaming import metrics
from streaming.client import AsyncProfileClient
from streaming.intake.async_send import AsyncSender
from streaming.lookup.handlers import Service
from streaming.lookup.openapi import document
from streaming.lookup.problems import ProblemError, problem_of
from streaming.lookup.routes import ROUTES, Handler
from streaming.lookup.tick import SharedReader
from streaming.settings import Settings

# The label of metrics for paths that are no route: callers choose those, and metrics must stay few.
NO_ROUTE = "none"


def application(settings: Settings) -> Application:
    """An ASGI application that opens its connections at start and closes them at stop. Call it where
    the event loop runs that will serve."""
    profiles = AsyncProfileClient(settings.redis, namespace=settings.namespace, timeout_s=settings.store_timeout_s)
    service = Service(
        settings=settings,
        profiles=profiles,
        shared=SharedReader(profiles),
        sender=AsyncSender(settings),
        openapi=msgspec.json.encode(document()),
    )
    app = Application()
    key = settings.api_key.encode()
    for route in ROUTES:
        app.router.add(route.method, route.path, _guarded(service, route.path, route.handler, key * route.protected))

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

    app.router.fallback = _guarded(service, NO_ROUTE, no_route, b"")

    async def stop(_: Application) -> None:
        service.sender.close()
        await profiles.close()

    app.on_stop += stop
    return app


def _serves(app: Application, method: str, request: Request) -> bool:
    return app.router.get_matching_route(method, request.url.path) is not None


def _guarded(service: Service, path: str, handler: Handler, key: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        started = time.perf_counter()
        try:
            if key:
                _admit(request, key)
            response = await handler(service, request)
        except Exception as error:  # noqa: BLE001  the last guard: whatever it was, the caller gets a problem
            response = problem_of(error, path).response()
        # A method that is no route's is the caller's word, too.
        method = request.method if path != NO_ROUTE else NO_ROUTE
        metrics.HTTP_SECONDS.labels(path, method, response.status).observe(time.perf_counter() - started)
        return response

    return guarded


def _admit(request: Request, key: bytes) -> None:
    """Raises:
    ProblemError: 401 without `Authorization: Bearer KEY`.
    """
    scheme, _, given = (request.get_first_header(b"Authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key):
        raise ProblemError(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "send the key of this service as `Authorization: Bearer KEY`",
            field="Authorization",
            headers=((b"WWW-Authenticate", b"Bearer"),),
        )
