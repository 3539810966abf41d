"""What both clients do that is not waiting for Redis: check arguments, read replies, name failures. Pure."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import msgspec
from redis import exceptions

from streaming.client import tokens
from streaming.client.connect import Target, parse
from streaming.client.errors import InvalidArgument, NotYetVisible, UnknownFacet
from streaming.controls import consent
from streaming.controls.types import PURPOSES, Purpose
from streaming.errors import StoreUnavailable
from streaming.events.types import Id
from streaming.profiles import fold
from streaming.profiles.view import Profile

__all__ = ["InvalidArgument", "UnknownFacet"]  # where callers found them first

# One reply of that many pairs is about 300 KB; who needs more reads on with the cursor.
MAX_AUDIENCE = 10_000

# What `events.types.Id` says, in words.
ID_RULE = "must be 1 to 128 characters, no control characters, no { or }"

# `Id` itself, compiled: msgspec's own check of a single value costs 5 us, this one half.
_META: msgspec.Meta = get_args(Id)[1]
_ID_CHARS = _META.max_length or 0
_ID = re.compile(_META.pattern or "")

# A look-up slower than this is one that the caller's own request no longer waits for.
TIMEOUT_S = 0.5

# A failover takes seconds, a closed connection or a restarted proxy is back within milliseconds: two more attempts
# meet the second and don't pile up on the first.
RETRIES = 2
# First pause up to this, each next up to twice that; a random part of it (full jitter), so that the callers of a
# server that went away don't come back all at once.
RETRY_PAUSE_S = 0.02

# How a wait for an event looks again: an idle worker merges within milliseconds, a busy one within a second.
WAIT_FIRST_S = 0.001
WAIT_MOST_S = 0.02

# Beyond it a process would rather be a replica.
MAX_CACHE_MB = 65_536

# What mends by itself: the server is away, starts, fails over, or answers too late.
_PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.RedisClusterException,
    OSError,
)
_LASTING = (exceptions.AuthenticationError, exceptions.AuthorizationError)  # redis-py calls them ConnectionErrors
# All that a read can end in when it is Redis' fault; asyncio's own TimeoutError is an OSError.
FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)


T = TypeVar("T")
P = TypeVar("P", Profile, Profile | None)


@dataclass(frozen=True, slots=True)
class Options:
    """A client's arguments, checked; `ProfileClient` says what they mean."""

    target: Target
    replicas: tuple[Target, ...]
    namespace: str
    timeout_s: float
    deadline_s: float
    retries: int
    cache_bytes: int
    hedge_after_s: float


def options(
    url: str,
    namespace: str,
    timeout_s: float,
    deadline_s: float | None,
    retries: int,
    cache_mb: float,
    replicas: Sequence[str],
    hedge_after_ms: float,
) -> Options:
    """Raises:
    InvalidArgument
    """
    if not 0 < timeout_s < math.inf:
        raise InvalidArgument("timeout_s", "must be above 0")
    if deadline_s is not None and not timeout_s <= deadline_s < math.inf:
        raise InvalidArgument("deadline_s", "must be at least timeout_s")
    if not 0 <= retries <= 10:
        raise InvalidArgument("retries", "must be 0 to 10")
    if not 0 <= cache_mb <= MAX_CACHE_MB:
        raise InvalidArgument("cache_mb", f"must be 0 to {MAX_CACHE_MB:,}")
    if isinstance(replicas, str):
        raise InvalidArgument("replicas", "must be a list of URLs, not one")
    target = parse(url, "url")
    others = tuple(parse(replica, f"replicas[{index}]") for index, replica in enumerate(replicas))
    if any(other.kind != "server" for other in others):
        raise InvalidArgument("replicas", "must be single servers: Sentinel and Cluster know theirs")
    if not 0 <= hedge_after_ms < timeout_s * 1000:
        raise InvalidArgument("hedge_after_ms", "must be at least 0 and below timeout_s")
    if hedge_after_ms and not others and target.kind == "server":
        raise InvalidArgument("hedge_after_ms", "needs replicas=[...], or a redis+sentinel:// or redis+cluster:// URL")
    if others and not hedge_after_ms:
        raise InvalidArgument("replicas", "are read only with hedge_after_ms")
    return Options(
        target=target,
        replicas=others,
        namespace=namespace,
        timeout_s=timeout_s,
        deadline_s=timeout_s if deadline_s is None else deadline_s,
        retries=retries,
        cache_bytes=int(cache_mb * 1_000_000),
        hedge_after_s=hedge_after_ms / 1000,
    )


def any_of(servers: Sequence[T]) -> T:
    return random.choice(servers)  # noqa: S311  no secret


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def checked_id(value: object, field: str = "customer_id") -> str:
    """The id, if it can be one.

    Raises:
        InvalidArgument
    """
    if isinstance(value, str) and len(value) <= _ID_CHARS and _ID.search(value):
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a character
            pass
        else:
            return value
    raise InvalidArgument(field, ID_RULE)


def checked_ids(values: Iterable[object], field: str = "ids") -> list[str]:
    """The ids, in order.

    Raises:
        InvalidArgument: names the first wrong one by its index.
    """
    if isinstance(values, str):  # an iterable of ids by accident
        raise InvalidArgument(field, "must be a list of ids, not one")
    return [checked_id(value, f"{field}[{index}]") for index, value in enumerate(values)]


def checked_defaults(consent_default: Mapping[str, bool] | None) -> dict[str, bool]:
    """Raises:
    InvalidArgument
    """
    defaults = dict(consent_default or {})
    if unknown := [purpose for purpose in defaults if purpose not in PURPOSES]:
        raise InvalidArgument("consent_default", f"{unknown[0]!r} is no purpose; there are {', '.join(PURPOSES)}")
    if wrong := [purpose for purpose, granted in defaults.items() if not isinstance(granted, bool)]:
        raise InvalidArgument("consent_default", f"{wrong[0]} must be True (granted) or False (denied)")
    return defaults


def checked_purpose(purpose: Purpose | None) -> None:
    """Raises:
    InvalidArgument: a misspelt purpose would else be one that nobody denied.
    """
    if purpose is not None and purpose not in PURPOSES:
        raise InvalidArgument("purpose", f"must be one of {', '.join(PURPOSES)}")


def for_purpose(profile: P, purpose: Purpose | None, defaults: Mapping[str, bool]) -> P:
    """The profile, unless the customer does not grant its use.

    Raises:
        ConsentDenied
    """
    if purpose is not None and profile is not None:
        consent.require(profile, purpose, defaults)
    return profile


# id -> what is stored under it; of ids asked for, and of those that they are linked with
Known = dict[str, bytes | None]


def linked(ids: Iterable[str], known: Known) -> list[str]:
    """The ids of the same persons that are still to be read; mostly none."""
    return list(
        {other for it in ids if (raw := known[it]) and fold.neighbours(raw) for other in fold.missing(it, known)}
    )


def read_person(customer_id: str, known: Known, at_ms: int) -> Profile | None:
    """The profile of the person who an id belongs to; None without any event."""
    raw = known[customer_id]
    if raw is None:
        return None
    if fold.neighbours(raw):
        return fold.fold(customer_id, known, at_ms)
    profile = Profile.from_bytes(raw, at_ms)  # the same, faster
    return profile if profile.events else None


def read_people(ids: Iterable[str], known: Known, at_ms: int) -> dict[str, Profile | None]:
    return {it: read_person(it, known, at_ms) for it in ids}


def checked_token(token: str | tokens.Token, timeout_s: float) -> tokens.Token:
    """Raises:
    InvalidArgument
    """
    if not 0 <= timeout_s < math.inf:
        raise InvalidArgument("timeout_s", "must be at least 0")
    return tokens.decode(token) if isinstance(token, str) else token


def not_yet(token: tokens.Token, timeout_s: float) -> NotYetVisible:
    return NotYetVisible(token.customer_id, token.topic, token.partition, token.offset, timeout_s)


def wait_pauses() -> Iterator[float]:
    pause_s = WAIT_FIRST_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, WAIT_MOST_S)


def retry_pause(error: Exception, failed: int, left_s: float, options: Options) -> float | None:
    """Seconds to wait before the next attempt, after `failed` of them ended in an error; None: give up."""
    if failed > options.retries or not isinstance(error, _PASSING) or isinstance(error, _LASTING):
        return None
    pause_s = random.uniform(0, RETRY_PAUSE_S * 2 ** (failed - 1))  # noqa: S311  no secret
    return pause_s if pause_s < left_s else None


def failure(error: Exception, options: Options) -> StoreUnavailable:
    """Redis' exception as ours: where, and what mends it."""
    where = f"Redis at {options.target.where}"
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return StoreUnavailable(f"{where} did not answer within {options.deadline_s:g} s")
    if isinstance(error, exceptions.MovedError):
        return StoreUnavailable(f"{where} is a node of a cluster: write redis+cluster:// in the URL")
    return StoreUnavailable(f"{where} can't be read ({error}): check that it runs")
