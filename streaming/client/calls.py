"""What both clients do that is not waiting for Redis: check arguments, read replies, name failures. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from streaming.errors import LimnerError, StoreUnavailable
from streaming.events.types import Id
from streaming.profiles.view import Profile, strength_of

# One reply of that many pairs is about 300 KB; who needs more is exporting, not looking up.
MAX_AUDIENCE = 10_000

# What `events.types.Id` says, in words.
ID_RULE = "must be 1 to 128 characters, no control characters, no { or }"

# A look-up slower than this is one that the caller's own request no longer waits for.
TIMEOUT_S = 0.5


class InvalidArgument(LimnerError):
    """An argument is out of range; `field` names it, `detail` says what is allowed."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class UnknownFacet(LimnerError):
    """No customer has ever shown a label of this facet: a misspelling, or a pack that is not in force."""

    def __init__(self, facet: str) -> None:
        super().__init__(f"facet {facet!r} is not known: no event has given evidence for it yet")
        self.facet = facet


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def checked_id(value: object, field: str = "customer_id") -> str:
    """The id, if it can be one.

    Raises:
        InvalidArgument
    """
    try:
        msgspec.convert(value, Id)
        str(value).encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise InvalidArgument(field, ID_RULE) from None
    return str(value)


def checked_ids(values: Iterable[object], field: str = "ids") -> list[str]:
    """The ids, in order.

    Raises:
        InvalidArgument: names the first wrong one by its index.
    """
    if isinstance(values, str):  # an iterable of ids by accident
        raise InvalidArgument(field, "must be a list of ids, not one")
    return [checked_id(value, f"{field}[{index}]") for index, value in enumerate(values)]


def check_audience(facet: str, label: str, limit: int, min_strength: float) -> None:
    """Raises:
    InvalidArgument
    """
    checked_id(facet, "facet")
    checked_id(label, "label")
    if not 1 <= limit <= MAX_AUDIENCE:
        raise InvalidArgument("limit", f"must be 1 to {MAX_AUDIENCE:,}")
    if not 0 <= min_strength < 1:
        raise InvalidArgument("min_strength", "must be at least 0 and below 1")


def connection_options(timeout_s: float) -> dict[str, Any]:
    """redis-py's keyword arguments. No second attempts: it finds a pooled connection that the server closed
    before it uses it, and repeating after a timeout would double the wait that the caller chose.

    Raises:
        InvalidArgument
    """
    if not 0 < timeout_s < math.inf:
        raise InvalidArgument("timeout_s", "must be above 0")
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
    }


# redis-py's type of a value; bytes, since the clients ask it not to decode
Reply = bytes | str | None


def read_profile(reply: Reply, at_ms: int) -> Profile | None:
    return None if reply is None else Profile.from_bytes(cast(bytes, reply), at_ms)


def read_profiles(ids: Sequence[str], replies: Sequence[Reply], at_ms: int) -> dict[str, Profile | None]:
    return {customer_id: read_profile(reply, at_ms) for customer_id, reply in zip(ids, replies, strict=True)}


def read_audience(
    facet: str,
    half_life: bytes | None,
    members: Sequence[tuple[bytes, float]],
    min_strength: float,
    at_ms: int,
) -> list[tuple[str, float]]:
    """Members (customer_id, A), strongest first, to (customer_id, strength): w = 2^(A - T/half_life).

    An event's time may lie ahead of the clock; the sum of the sources can't be clamped as `view` does
    with each, so a strength may stand above the profile's by what decays in those minutes.

    Raises:
        UnknownFacet: there is no half-life.
    """
    if half_life is None:
        raise UnknownFacet(facet)
    # 1,000 half-lives is beyond what a double holds, and a strength of 1 long before
    strengths = (
        (member.decode(), strength_of(2.0 ** min(score - at_ms / float(half_life), 1_000.0)))
        for member, score in members
    )
    return [(member, strength) for member, strength in strengths if strength >= min_strength]


def address(url: str) -> str:
    """The host and port of a Redis URL, or its socket's path: no user, no password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path


@contextmanager
def naming_failures(url: str, timeout_s: float) -> Iterator[None]:
    """Redis' exceptions become StoreUnavailable, saying where and what mends it."""
    try:
        yield
    except RedisTimeoutError:
        raise StoreUnavailable(f"Redis at {address(url)} did not answer within {timeout_s:g} s") from None
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis at {address(url)} can't be read ({error}): check that it runs") from None
