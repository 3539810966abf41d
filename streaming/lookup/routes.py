"""Every route, once: what serves it, and what OpenAPI says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from blacksheep import Request, Response

from streaming.lookup import handlers, shapes
from streaming.profiles.view import Profile

Handler = Callable[[handlers.Service, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    summary: str
    answer: Any  # msgspec type of a good answer's JSON, or a media type in words
    status: HTTPStatus = HTTPStatus.OK
    query: type[Any] | None = None
    body: Any = None  # msgspec type of the body; "events" for what POST /v1/events takes
    problems: dict[HTTPStatus, str] = field(default_factory=dict)

    @property
    def protected(self) -> bool:
        """Needs the key, where one is set. Probes and scrapers have none."""
        return self.path.startswith("/v1/")


_UNAVAILABLE = {HTTPStatus.SERVICE_UNAVAILABLE: "Redis does not answer; try again after Retry-After seconds"}
_BODY = {
    HTTPStatus.BAD_REQUEST: "The body is not JSON",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body's content type is not application/json",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field is not as described",
}

ROUTES = (
    Route(
        "GET", "/v1/profiles/{id}", handlers.get_profile, "One customer's profile, as of now", Profile,
        problems={
            HTTPStatus.BAD_REQUEST: "The id can't be one",
            HTTPStatus.NOT_FOUND: "No event of this customer has been merged",
            HTTPStatus.INTERNAL_SERVER_ERROR: "The stored profile is damaged, or newer than this service",
            **_UNAVAILABLE,
        },
    ),
    Route(
        "POST", "/v1/profiles:batch", handlers.get_profiles, "Up to 1,000 profiles", shapes.BatchFound,
        body=shapes.BatchRequest, problems=_BODY | _UNAVAILABLE,
    ),
    Route(
        "GET", "/v1/audiences/{facet}/{label}", handlers.get_audience, "Customers with a label, strongest first",
        shapes.Audience, query=shapes.AudienceQuery,
        problems={
            HTTPStatus.BAD_REQUEST: "A parameter is out of range",
            HTTPStatus.NOT_FOUND: "No event has given evidence for this facet yet",
            **_UNAVAILABLE,
        },
    ),
    Route(
        "POST", "/v1/events", handlers.post_events, "Take events into Kafka", shapes.EventsTaken,
        status=HTTPStatus.ACCEPTED, body="events",
        problems=_BODY | {
            HTTPStatus.UNPROCESSABLE_ENTITY: "No event is valid",
            HTTPStatus.SERVICE_UNAVAILABLE: "Kafka did not acknowledge in time: send all again; repeats are dropped",
        },
    ),
    Route("GET", "/health", handlers.get_health, "The process is alive", shapes.Status),
    Route(
        "GET", "/ready", handlers.get_ready, "Redis and Kafka answer", shapes.Status,
        problems={HTTPStatus.SERVICE_UNAVAILABLE: "`missing` names what does not answer"},
    ),
    Route("GET", "/metrics", handlers.get_metrics, "Prometheus metrics", "text/plain"),
    Route("GET", "/openapi.json", handlers.get_openapi, "This description", "application/json"),
)  # fmt: skip
