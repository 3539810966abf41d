"""Audiences page by page: what to ask Redis, how to read the reply, and where the next page begins. Pure."""

from __future__ import annotations

import binascii
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from streaming.client.calls import MAX_AUDIENCE, checked_id
from streaming.client.errors import InvalidArgument, UnknownFacet
from streaming.profiles.keys import audience_key, half_lives_key
from streaming.profiles.view import strength_of


class Audience(list[tuple[str, float]]):
    """(customer_id, strength 0..1), strongest first. `cursor` gives the next page; None after the last."""

    def __init__(self, members: Sequence[tuple[str, float]] = (), cursor: str | None = None) -> None:
        super().__init__(members)
        self.cursor = cursor


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Behind which member a page begins. The tag is the format's version."""

    facet: str
    label: str
    score: float
    member: bytes
    ties: int  # members of this score up to this one


class Query(NamedTuple):
    """One page asked for, its arguments checked."""

    facet: str
    label: str
    limit: int
    min_strength: float
    after: Cursor | None

    @property
    def wanted(self) -> int:
        """Members to ask Redis for: one more tells whether there is a next page, and those of the cursor's score
        that were shown come again. Scores are positions, and unlike ranks don't shift while others come and go."""
        return self.limit + 1 + (self.after.ties if self.after else 0)


_CURSOR = msgspec.msgpack.Decoder(Cursor)


def encode(cursor: Cursor) -> str:
    return urlsafe_b64encode(msgspec.msgpack.encode(cursor)).rstrip(b"=").decode()


def query(facet: str, label: str, limit: int, min_strength: float, cursor: str | None) -> Query:
    """Raises:
    InvalidArgument
    """
    checked_id(facet, "facet")
    checked_id(label, "label")
    if not 1 <= limit <= MAX_AUDIENCE:
        raise InvalidArgument("limit", f"must be 1 to {MAX_AUDIENCE:,}")
    if not 0 <= min_strength < 1:
        raise InvalidArgument("min_strength", "must be at least 0 and below 1")
    after = None
    if cursor is not None:
        with suppress(binascii.Error, ValueError, TypeError, msgspec.DecodeError):
            after = _CURSOR.decode(b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if after is None or (after.facet, after.label) != (facet, label) or not 0 <= after.ties <= MAX_AUDIENCE:
            raise InvalidArgument("cursor", f"is not one that an audience of {facet}/{label} gave")
    return Query(facet, label, limit, min_strength, after)


def commands(namespace: str, page: Query) -> list[tuple[Any, ...]]:
    """The half-life of the facet, and members by score."""
    key = audience_key(namespace, page.facet, page.label)
    start = "+inf" if page.after is None else repr(page.after.score)
    return [
        ("HGET", half_lives_key(namespace), page.facet),
        ("ZRANGE", key, start, "-inf", "BYSCORE", "REV", "LIMIT", 0, page.wanted, "WITHSCORES"),
    ]


def read(page: Query, half_life: bytes | None, reply: Sequence[Any], at_ms: int) -> Audience:
    """(member, A), strongest first, to (customer_id, strength): w = 2^(A - T/half_life).

    An event's time may lie ahead of the clock; the sum of the sources can't be clamped as `view` does
    with each, so a strength may stand above the profile's by what decays in those minutes.

    Raises:
        UnknownFacet: there is no half-life.
    """
    if half_life is None:
        raise UnknownFacet(page.facet)
    decay = at_ms / float(half_life)
    found: list[tuple[str, float]] = []
    last: Cursor | None = None
    pairs = list(_pairs(reply))
    for member, score in pairs:
        if len(found) == page.limit and last is not None:
            return Audience(found, encode(last))
        # 1,000 half-lives is beyond what a double holds, and a strength of 1 long before
        strength = strength_of(2.0 ** min(score - decay, 1_000.0))
        if strength < page.min_strength:
            return Audience(found)
        ties = last.ties + 1 if last is not None and score == last.score else 1  # a reply begins with a score's first
        last = Cursor(page.facet, page.label, score, member, ties)
        if not _shown(page.after, member, score):
            found.append((member.decode(), strength))
    # Members that came to the cursor's score since have filled the reply: there may be more behind them.
    return Audience(found, encode(last) if last is not None and len(pairs) == page.wanted else None)


def _shown(after: Cursor | None, member: bytes, score: float) -> bool:
    """Redis orders members of one score by their bytes, here from the last to the first."""
    return after is not None and score == after.score and member >= after.member


def _pairs(reply: Sequence[Any]) -> Iterator[tuple[bytes, float]]:
    """[member, score] each in RESP3, a flat list in RESP2."""
    if reply and isinstance(reply[0], list | tuple):
        yield from ((member, float(score)) for member, score in reply)
    else:
        yield from ((reply[at], float(reply[at + 1])) for at in range(0, len(reply), 2))
