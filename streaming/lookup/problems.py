"""Failures as RFC 9457 problem details."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from blacksheep import Content, Response

from streaming import logs
from streaming.client.calls import ID_RULE
from streaming.client.errors import InvalidArgument, NotYetVisible, UnknownFacet
from streaming.controls.consent import ConsentDenied
from streaming.errors import BrokerUnavailable, LimnerError, StoreUnavailable
from streaming.events.wire import Codec
from streaming.lookup.shapes import EventResult, Problem
from streaming.profiles.view import ProfileUnreadable

# What a caller does on 503: Redis and Kafka fail over within seconds, and a second keeps a crowd from storming.
RETRY_AFTER_S = 1

T = TypeVar("T")
_log = logs.get(__name__)


class ProblemError(Exception):
    """Ends a request with a problem; `name` is the last part of its type."""

    def __init__(
        self,
        status: HTTPStatus,
        name: str,
        detail: str,
        *,
        field: str | None = None,
        missing: list[str] | None = None,
        results: list[EventResult] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.headers = headers
        self.problem = Problem(
            type=f"urn:limner:problem:{name}",
            title=status.phrase,
            status=status.value,
            detail=detail,
            field=field,
            missing=missing,
            results=results,
        )

    def response(self) -> Response:
        headers = list(self.headers)
        if self.problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"Retry-After", str(RETRY_AFTER_S).encode()))
        return Response(
            self.problem.status, headers, Content(b"application/problem+json", msgspec.json.encode(self.problem))
        )


def problem_of(error: Exception, route: str) -> ProblemError:
    """The problem that answers a request which ended in `error`; logs those that an operator must see."""
    match error:
        case ProblemError():
            return error
        case InvalidArgument():
            return ProblemError(HTTPStatus.BAD_REQUEST, "invalid-argument", error.detail, field=error.field)
        case UnknownFacet():
            return ProblemError(HTTPStatus.NOT_FOUND, "unknown-facet", str(error), field="facet")
        case ConsentDenied():
            return ProblemError(HTTPStatus.FORBIDDEN, "consent-denied", str(error), field="purpose")
        case NotYetVisible():
            return ProblemError(HTTPStatus.GATEWAY_TIMEOUT, "not-yet-visible", str(error), field="at_least")
        case StoreUnavailable() | BrokerUnavailable():
            name = "store-unavailable" if isinstance(error, StoreUnavailable) else "broker-unavailable"
            _log.warning("a dependency failed a request", route=route, error=str(error))
            return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, name, str(error))
        case ProfileUnreadable():
            _log.error("a profile can't be read", route=route, error=str(error))
            return ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "profile-unreadable", str(error))
        case LimnerError():
            _log.error("a request failed", route=route, error=str(error))
            return ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "failed", str(error))
    _log.error("a request failed unexpectedly", route=route, exc_info=error)
    return ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "limner failed; its log says why")


def faulty_field(error: msgspec.ValidationError) -> tuple[str | None, str]:
    """msgspec's message as (field, what was expected): "Expected `int` - at `$.limit`"."""
    text = str(error)
    if unknown := re.match(r"Object contains unknown field `(.+)`", text):
        return unknown[1], "is not known"
    if absent := re.match(r"Object missing required field `(.+?)`", text):
        return absent[1], "is missing"
    expected, _, path = text.partition(" - at `")
    if "matching regex" in expected:  # only ids have one
        expected = ID_RULE
    return path.removesuffix("`").removeprefix("$").removeprefix(".") or None, expected


_DECODE: dict[Codec, Callable[..., Any]] = {"json": msgspec.json.decode, "msgpack": msgspec.msgpack.decode}


def decode_body(body: bytes, shape: type[T], codec: Codec) -> T:
    """Raises:
    ProblemError: 400 for what isn't JSON (or msgpack), 422 for a field that is not as `shape` says.
    """
    try:
        decoded: T = _DECODE[codec](body, type=shape)
    except msgspec.ValidationError as error:
        field, detail = faulty_field(error)
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-body", detail, field=field) from None
    except RecursionError:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed-body", "the body is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed-body", f"the body is not {codec}: {error}") from None
    return decoded


def decode_query(query: dict[str, list[str]], shape: type[T]) -> T:
    """Raises:
    ProblemError: 400, naming a parameter that is unknown, repeated or out of range.
    """
    repeated = next((name for name, values in query.items() if len(values) != 1), None)
    if repeated is not None:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "invalid-argument", "may be given once", field=repeated)
    try:
        return msgspec.convert({name: values[0] for name, values in query.items()}, shape, strict=False)
    except msgspec.ValidationError as error:
        field, detail = faulty_field(error)
        raise ProblemError(HTTPStatus.BAD_REQUEST, "invalid-argument", detail, field=field) from None
