"""What the HTTP service takes and answers. What is declared here is checked, answered and published in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from streaming.client.calls import MAX_AUDIENCE
from streaming.controls.receipts import Receipt
from streaming.controls.types import Purpose
from streaming.events.types import Id
from streaming.profiles.view import LabelStrength, Orders, Profile

# A batch of a thousand profiles is about 3 MB of JSON and some 60 ms of this process.
MAX_BATCH = 1_000
# As many as a batch: what a caller has to choose from on one page or in one message.
MAX_CANDIDATES = 1_000
MAX_CANDIDATE_LABELS = 64
# Beyond what a proxy on the way would wait for, a caller had better ask again.
MAX_WAIT_MS = 10_000
# Of a stream of changes: each is sent again when it changes.
MAX_WATCHED_AUDIENCE = 1_000

_Fields = Annotated[
    str,
    msgspec.Meta(
        max_length=2_000,
        description="only these, separated by commas: facets, `sentiment` (the number and its facet), `orders`, "
        "`events`, `labels` (of all facets)",
    ),
]
_Purpose = Annotated[
    Purpose, msgspec.Meta(description="what the profile is wanted for: 403 where the customer has not granted it")
]
_MinStrength = Annotated[float, msgspec.Meta(ge=0, lt=1, description="strength, as of now, of at least")]


class ProfileQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What to read of a profile, and what it must hold."""

    fields: _Fields | None = None
    at_least: (
        Annotated[str, msgspec.Meta(max_length=1_000, description="a token from POST /v1/events: wait for that event")]
        | None
    ) = None
    wait_ms: Annotated[
        int, msgspec.Meta(ge=0, le=MAX_WAIT_MS, description="how long to wait for `at_least` at most")
    ] = 1_000
    purpose: _Purpose | None = None


class FieldsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What to send of a profile."""

    fields: _Fields | None = None


class SelectedProfile(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The fields of a profile that `fields` names; its labels are those of the facets named."""

    customer_id: str
    labels: list[LabelStrength] | UnsetType = UNSET
    sentiment: float | UnsetType | None = UNSET
    orders: Orders | UnsetType | None = UNSET
    events: dict[str, int] | UnsetType = UNSET
    updated_ms: int
    version: int


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which customers to look up, and what of them: as `fields` of one profile, all of it when left out. With a
    `purpose`, those who have not granted it are null."""

    ids: Annotated[list[Id], msgspec.Meta(max_length=MAX_BATCH)]
    fields: Annotated[list[str], msgspec.Meta(max_length=100)] | None = None
    purpose: Purpose | None = None


class BatchFound(msgspec.Struct, omit_defaults=True):
    """Profiles by customer id; null for a customer without one."""

    profiles: dict[str, Profile | None]
    denied: list[str] = []
    """Those who have not granted the `purpose`."""


class BatchSelected(msgspec.Struct, omit_defaults=True):
    """The same, where `fields` were named."""

    profiles: dict[str, SelectedProfile | None]
    denied: list[str] = []


class AudienceQuery(msgspec.Struct, forbid_unknown_fields=True):
    """How much of an audience to list."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_AUDIENCE, description="at most so many, strongest first")] = 100
    min_strength: _MinStrength = 0.0
    cursor: Annotated[str, msgspec.Meta(max_length=1_000, description="`next` of the page before this one")] | None = (
        None
    )


class WatchQuery(msgspec.Struct, forbid_unknown_fields=True):
    """How much of an audience to watch."""

    limit: Annotated[
        int, msgspec.Meta(ge=1, le=MAX_WATCHED_AUDIENCE, description="the strongest so many customers")
    ] = 100
    min_strength: _MinStrength = 0.0


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
    next: str | None
    """`cursor` of the next page; null on the last."""


class AudienceChange(msgspec.Struct):
    """What changed among the strongest customers with a label; the first event of a stream lists all of them."""

    facet: str
    label: str
    entered: list[Member]
    left: list[str]
    """Customers weaker now than the others or than `min_strength`, or erased."""


_Weight = Annotated[float, msgspec.Meta(ge=-1_000_000, le=1_000_000)]


class Candidate(msgspec.Struct, forbid_unknown_fields=True):
    """Something to offer, by the labels that it appeals to; a negative weight repels."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    labels: Annotated[dict[str, _Weight], msgspec.Meta(max_length=MAX_CANDIDATE_LABELS)]
    """By "facet/label"."""


class RankRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Candidates to put in order for one customer."""

    customer_id: Id
    candidates: Annotated[list[Candidate], msgspec.Meta(min_length=1, max_length=MAX_CANDIDATES)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_CANDIDATES)] | None = None
    """The best so many; all when left out."""
    purpose: Purpose | None = None
    """Refused where the customer has not granted it."""


class Reason(msgspec.Struct):
    label: str
    """As the candidate names it."""
    weight: float
    strength: float
    """The customer's, 0..1."""
    contribution: float
    """weight * strength"""


class Ranked(msgspec.Struct):
    id: str
    score: float
    """The sum of all contributions."""
    reasons: list[Reason]
    """The largest contributions, by size."""


class Ranking(msgspec.Struct):
    """Best first; candidates of one score in the order given."""

    customer_id: str
    ranked: list[Ranked]


class EventResult(msgspec.Struct, omit_defaults=True):
    """What became of one event of a request."""

    index: int
    status: Literal["accepted", "rejected"]
    event_id: str | None = None
    token: str | None = None
    """For `at_least` of a look-up: waits until the profile holds this event."""
    reason: str | None = None
    """As the dead-letter topic names it."""
    detail: str | None = None
    """The field, and what was expected."""


class EventsTaken(msgspec.Struct, omit_defaults=True):
    """Accepted events are in Kafka, acknowledged by all in-sync replicas."""

    accepted: int
    rejected: int
    results: list[EventResult]
    token: str | None = None
    """Of the last event accepted, where all accepted are of one customer and one kind: it stands for all of them."""


class ConsentRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a customer grants (true) and denies; purposes not named stay as they were."""

    purposes: Annotated[dict[Purpose, bool], msgspec.Meta(min_length=1)]


class ConsentFound(msgspec.Struct):
    customer_id: str
    granted: dict[Purpose, bool]
    """What holds for each purpose."""
    said: dict[str, bool]
    """What the customer said; the rest is this service's default."""


class Ordered(msgspec.Struct):
    """A control is in Kafka; a worker carries it out."""

    event_id: str
    ts: int


class Erasures(msgspec.Struct):
    """Signed receipts of the erasures that were carried out for a customer, oldest first."""

    receipts: list[Receipt]


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
