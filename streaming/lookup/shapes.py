"""The JSON of the HTTP service. What is declared here is checked, answered and published in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from streaming.client.calls import MAX_AUDIENCE
from streaming.events.types import Id
from streaming.profiles.view import Profile

# A batch of a thousand profiles is about 3 MB of JSON and some 60 ms of this process.
MAX_BATCH = 1_000


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which customers to look up."""

    ids: Annotated[list[Id], msgspec.Meta(max_length=MAX_BATCH)]


class BatchFound(msgspec.Struct):
    """Profiles by customer id; null for a customer without one."""

    profiles: dict[str, Profile | None]


class AudienceQuery(msgspec.Struct, forbid_unknown_fields=True):
    """How much of an audience to list."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_AUDIENCE, description="at most so many, strongest first")] = 100
    min_strength: Annotated[float, msgspec.Meta(ge=0, lt=1, description="strength, as of now, of at least")] = 0.0


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Takes no query parameters: a misspelt one is refused, not ignored."""


class Member(msgspec.Struct):
    customer_id: str
    strength: float


class Audience(msgspec.Struct):
    """Customers with a label, strongest first, as of the server's clock."""

    facet: str
    label: str
    members: list[Member]


class EventResult(msgspec.Struct, omit_defaults=True):
    """What became of one event of a request."""

    index: int
    status: Literal["accepted", "rejected"]
    event_id: str | None = None
    reason: str | None = None
    """As the dead-letter topic names it."""
    detail: str | None = None
    """The field, and what was expected."""


class EventsTaken(msgspec.Struct):
    """Accepted events are in Kafka, acknowledged by all in-sync replicas."""

    accepted: int
    rejected: int
    results: list[EventResult]


class Status(msgspec.Struct):
    status: Literal["alive", "ready"]


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """RFC 9457 problem details."""

    type: str
    """urn:limner:problem:NAME; NAME is stable, for programs."""
    title: str
    status: int
    detail: str
    field: str | None = None
    """The parameter or body field at fault."""
    missing: list[str] | None = None
    """Of /ready: the dependencies that do not answer."""
    results: list[EventResult] | None = None
    """Of /v1/events, when no event was accepted: why, for each."""
