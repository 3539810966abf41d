"""Who calls, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from streaming.errors import LimnerError

if TYPE_CHECKING:
    from blacksheep import Request

Scope = Literal["read", "ingest", "label", "erase", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Caller:
    """`id` is what audit lines say: `key:ID`, `oidc:SUBJECT`, `api_key`, `local`, `cli:USER`."""

    id: str
    scopes: frozenset[Scope]
    rate: float = 0
    """Requests a second; 0: no limit."""


# Where a request's ASGI scope holds its caller.
_CALLER = "limner.caller"


def attach(request: Request, caller: Caller) -> None:
    cast(dict[str, Any], request.scope)[_CALLER] = caller


def caller_of(request: Request) -> Caller:
    """Who sent this request; of routes that have a scope."""
    caller: Caller = cast(dict[str, Any], request.scope)[_CALLER]
    return caller


Reason = Literal[
    "unauthorized", "missing-scope", "wrong-namespace", "rate-limited", "issuer-unavailable", "not-this-host"
]


class Refused(LimnerError):
    """The caller may not do this; the message says why, and never holds what they sent."""

    def __init__(self, reason: Reason, detail: str, retry_after_s: float = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after_s = retry_after_s
