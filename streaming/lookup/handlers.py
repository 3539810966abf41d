"""What each route does: a function of the service and the request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
import prometheus_client
from blacksheep import Content, Request, Response

from streaming.client import AsyncProfileClient
from streaming.client.calls import checked_id
from streaming.errors import BrokerUnavailable, StoreUnavailable
from streaming.intake.async_send import AsyncSender
from streaming.lookup import shapes
from streaming.lookup.accept import take
from streaming.lookup.problems import ProblemError, decode_body, decode_query
from streaming.lookup.tick import SharedReader
from streaming.settings import Settings

# 1,000 events of 4 KB.
MAX_BODY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers share."""

    settings: Settings
    profiles: AsyncProfileClient
    shared: SharedReader
    sender: AsyncSender
    openapi: bytes


async def get_profile(service: Service, request: Request) -> Response:
    decode_query(request.query, shapes.NoQuery)
    customer_id = checked_id(_path_value(request, "id"), "id")
    profile = await service.shared.get(customer_id)
    if profile is None:
        raise ProblemError(
            HTTPStatus.NOT_FOUND,
            "unknown-customer",
            f"no event of customer {customer_id!r} has been merged",
            field="id",
        )
    return _json(profile)


async def get_profiles(service: Service, request: Request) -> Response:
    wanted = decode_body(await _body(service, request), shapes.BatchRequest)
    return _json(shapes.BatchFound(await service.profiles.get_many(wanted.ids)))


async def get_audience(service: Service, request: Request) -> Response:
    facet, label = _path_value(request, "facet"), _path_value(request, "label")
    query = decode_query(request.query, shapes.AudienceQuery)
    members = await service.profiles.audience(facet, label, query.limit, query.min_strength)
    return _json(shapes.Audience(facet, label, [shapes.Member(*member) for member in members]))


async def post_events(service: Service, request: Request) -> Response:
    results, messages = take(await _body(service, request), service.settings)
    if not messages:
        first = results[0]
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid-events",
            f"event 0: {first.reason}: {first.detail}",
            results=results,
        )
    await service.sender.send(messages)
    taken = shapes.EventsTaken(len(messages), len(results) - len(messages), results)
    return _json(taken, HTTPStatus.ACCEPTED)


async def get_health(service: Service, request: Request) -> Response:
    return _json(shapes.Status("alive"))


async def get_ready(service: Service, request: Request) -> Response:
    answers = await asyncio.gather(service.profiles.ping(), service.sender.check(), return_exceptions=True)
    failed = {name: answer for name, answer in zip(("redis", "kafka"), answers, strict=True) if answer is not None}
    for error in failed.values():
        if not isinstance(error, StoreUnavailable | BrokerUnavailable):
            raise error
    if failed:
        raise ProblemError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not-ready",
            "; ".join(map(str, failed.values())),
            missing=list(failed),
        )
    return _json(shapes.Status("ready"))


async def get_metrics(service: Service, request: Request) -> Response:
    return Response(
        200, None, Content(prometheus_client.CONTENT_TYPE_LATEST.encode(), prometheus_client.generate_latest())
    )


async def get_openapi(service: Service, request: Request) -> Response:
    return Response(200, None, Content(b"application/json", service.openapi))


def _path_value(request: Request, name: str) -> str:
    """Percent-decoded; BlackSheep has matched the route, so it is there."""
    return str((request.route_values or {})[name])


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(status.value, None, Content(b"application/json", msgspec.json.encode(value)))


async def _body(service: Service, request: Request) -> bytes:
    """The body, of JSON by its content type.

    A web page may send any other type to this service across origins without asking first; this
    service listens on loopback without a key, where any page in a browser could reach it.
    """
    decode_query(request.query, shapes.NoQuery)
    content_type = request.content_type() or b""
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json", "must be application/json", field="Content-Type"
        )
    limit = max(MAX_BODY_BYTES, service.settings.max_record_bytes)
    body = bytearray()
    async for chunk in request.stream():  # type: ignore[attr-defined]  # the stub forgets that it is a generator
        body += chunk
        if len(body) > limit:
            raise ProblemError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large", f"the body may have up to {limit:,} bytes"
            )
    return bytes(body)
