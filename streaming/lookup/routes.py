"""Every route, once: what serves it, and what OpenAPI says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from blacksheep import Request, Response

from streaming.access.callers import Scope as Scope
from streaming.client.explain import Explanation
from streaming.lookup import handlers, shapes, told
from streaming.profiles.view import Profile

Handler = Callable[[handlers.Service, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    handler: Handler
    summary: str
    answer: Any  # msgspec type of a good answer, which comes as JSON or msgpack; or a media type in words
    scope: Scope | None = None  # what the caller's key must allow; probes and scrapers have no key
    status: HTTPStatus = HTTPStatus.OK
    query: type[Any] | None = None
    body: Any = None  # msgspec type of the body; "events" for what POST /v1/events takes
    tagged: bool = False  # answers with an entity tag, or 304
    problems: dict[HTTPStatus, str] = field(default_factory=dict)


_STORE = {HTTPStatus.SERVICE_UNAVAILABLE: "Redis does not answer; try again after Retry-After seconds"}
_PROFILE = {
    HTTPStatus.BAD_REQUEST: "The id can't be one, or a parameter is not as described",
    HTTPStatus.NOT_FOUND: "No event of this customer has been merged",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The stored profile is damaged, or newer than this service",
    **_STORE,
}
_AUDIENCE = {
    HTTPStatus.BAD_REQUEST: "A parameter is not as described",
    HTTPStatus.NOT_FOUND: "No event has given evidence for this facet yet",
    **_STORE,
}
_BODY = {
    HTTPStatus.BAD_REQUEST: "The body is not what its content type says",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body's content type is neither application/json nor application/msgpack",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field is not as described",
}
_ID = {HTTPStatus.BAD_REQUEST: "An id can't be one, or stands for nobody"}
_DAMAGED = {HTTPStatus.INTERNAL_SERVER_ERROR: _PROFILE[HTTPStatus.INTERNAL_SERVER_ERROR]}
_KAFKA = {HTTPStatus.SERVICE_UNAVAILABLE: "Kafka did not acknowledge in time; try again after Retry-After seconds"}
_DENIED = {HTTPStatus.FORBIDDEN: "The customer has not granted `purpose`; or the key lacks the scope"}
_STREAM = {HTTPStatus.SERVICE_UNAVAILABLE: "So many streams are open that another must wait; or Redis does not answer"}

ROUTES = (
    Route(
        "GET", "/v1/profiles/{id}", handlers.get_profile, "One customer's profile, as of now",
        Profile | shapes.SelectedProfile, scope="read", query=shapes.ProfileQuery, tagged=True,
        problems=_PROFILE | _DENIED | {
            HTTPStatus.GATEWAY_TIMEOUT: "The profile did not come to hold the event of `at_least` within `wait_ms`",
        },
    ),
    Route(
        "GET", "/v1/profiles/{id}/explain", handlers.get_explanation, "Where each label of a profile comes from",
        Explanation, scope="read", problems=_PROFILE,
    ),
    Route(
        "GET", "/v1/profiles/{id}/changes", handlers.get_profile_changes,
        "The profile now and each time it changes, as server-sent events: `profile`, `erased`, `problem`",
        "text/event-stream", scope="read", query=shapes.FieldsQuery,
        problems={HTTPStatus.BAD_REQUEST: "The id can't be one, or a parameter is not as described", **_STREAM},
    ),
    Route(
        "POST", "/v1/profiles:batch", handlers.get_profiles, "Up to 1,000 profiles",
        shapes.BatchFound | shapes.BatchSelected, scope="read",
        body=shapes.BatchRequest,
        problems=_BODY | _STORE | {HTTPStatus.INTERNAL_SERVER_ERROR: _PROFILE[HTTPStatus.INTERNAL_SERVER_ERROR]},
    ),
    Route(
        "GET", "/v1/audiences/{facet}/{label}", handlers.get_audience, "Customers with a label, strongest first",
        shapes.Audience, scope="read", query=shapes.AudienceQuery, problems=_AUDIENCE,
    ),
    Route(
        "GET", "/v1/audiences/{facet}/{label}/changes", handlers.get_audience_changes,
        "Who enters and leaves the strongest customers with a label, as server-sent events: `audience`, `problem`",
        "text/event-stream", scope="read", query=shapes.WatchQuery, problems=_AUDIENCE | _STREAM,
    ),
    Route(
        "POST", "/v1/rank", handlers.post_rank, "Candidates in the order of a customer's strengths", shapes.Ranking,
        scope="read", body=shapes.RankRequest,
        problems=_BODY | _STORE | _DENIED | {
            HTTPStatus.NOT_FOUND: _PROFILE[HTTPStatus.NOT_FOUND],
            HTTPStatus.INTERNAL_SERVER_ERROR: _PROFILE[HTTPStatus.INTERNAL_SERVER_ERROR],
        },
    ),
    Route(
        "POST", "/v1/events", handlers.post_events, "Take events into Kafka", shapes.EventsTaken, scope="ingest",
        status=HTTPStatus.ACCEPTED, body="events",
        problems=_BODY | {
            HTTPStatus.UNPROCESSABLE_ENTITY: "No event is valid",
            HTTPStatus.SERVICE_UNAVAILABLE: "Kafka is behind, or did not acknowledge in time: send all again after "
            "Retry-After seconds; repeats are dropped",
        },
    ),
    Route(
        "GET", "/v1/profiles/{id}/consent", told.get_consent, "What a customer grants, by purpose", shapes.ConsentFound,
        scope="read", problems=_ID | _STORE | _DAMAGED,
    ),
    Route(
        "PUT", "/v1/profiles/{id}/consent", told.put_consent, "Say what a customer grants or denies", shapes.Ordered,
        scope="ingest", status=HTTPStatus.ACCEPTED, body=shapes.ConsentRequest,
        problems=_BODY | _KAFKA | {
            HTTPStatus.BAD_REQUEST: "The id can't be one, or the body is not what its content type says",
        },
    ),
    Route(
        "PUT", "/v1/profiles/{id}/links/{other}", told.put_link, "Two ids are one person: look-ups add them up",
        shapes.Ordered, scope="admin", status=HTTPStatus.ACCEPTED, problems=_ID | _KAFKA,
    ),
    Route(
        "DELETE", "/v1/profiles/{id}/links/{other}", told.delete_link, "They are not: each is as if never linked",
        shapes.Ordered, scope="admin", status=HTTPStatus.ACCEPTED, problems=_ID | _KAFKA,
    ),
    Route(
        "PUT", "/v1/profiles/{id}/block", told.put_block, "Several people share this id: its links are not followed",
        shapes.Ordered, scope="admin", status=HTTPStatus.ACCEPTED, problems=_ID | _KAFKA,
    ),
    Route(
        "DELETE", "/v1/profiles/{id}/block", told.delete_block, "One person uses this id again", shapes.Ordered,
        scope="admin", status=HTTPStatus.ACCEPTED, problems=_ID | _KAFKA,
    ),
    Route(
        "DELETE", "/v1/profiles/{id}", told.delete_profile, "Erase a customer: everything of events up to now",
        shapes.Ordered, scope="erase", status=HTTPStatus.ACCEPTED, problems=_ID | _KAFKA,
    ),
    Route(
        "GET", "/v1/profiles/{id}/erasures", told.get_erasures, "Signed receipts of what was erased where",
        shapes.Erasures, scope="erase", problems=_ID | _STORE,
    ),
    Route(
        "GET", "/v1/profiles/{id}/export", told.get_export, "Everything that limner knows of a customer",
        "application/json", scope="admin",
        problems=_ID | _DAMAGED | {HTTPStatus.SERVICE_UNAVAILABLE: "Redis or Kafka does not answer"},
    ),
    Route("GET", "/health", handlers.get_health, "The process is alive", shapes.Status),
    Route(
        "GET", "/ready", handlers.get_ready, "Redis and Kafka answer", shapes.Status,
        problems={HTTPStatus.SERVICE_UNAVAILABLE: "`missing` names what does not answer"},
    ),
    Route("GET", "/metrics", handlers.get_metrics, "Prometheus metrics", "text/plain"),
    Route("GET", "/openapi.json", handlers.get_openapi, "This description", "application/json"),
)  # fmt: skip
