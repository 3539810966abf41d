"""The shapes of what comes in: a Kafka record, and the events that it holds.

Times are epoch milliseconds everywhere inside limner. Money is an integer number of
ten-thousandths of the currency's unit (`MONEY`), so that sums are exact in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

Source = Literal["chat", "order"]

# Ten-thousandths hold every price in use (three decimals in dinars, four for unit prices of screws),
# and 2^53 of them, the largest exact integer in Lua, is 900 thousand million units.
MONEY = 10_000

# Redis hash tags end at "}", so a brace in an id would split one customer's keys over shards.
# `<=128` and no control characters: ids travel in headers, URLs and logs.
# (`$` alone lets a newline at the end pass.)
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f{}]+$(?!\n)")]
# An id whose characters `decode` checks, all ids of an event in one search: a pattern costs half a
# microsecond a field, ten for an order of 20 lines.
BareId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Currency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
# A line of a million pieces at a million each still fits MONEY times an order of 1,000 such lines.
Quantity = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


Role = Literal["customer", "agent"]
Status = Literal["placed", "cancelled", "returned"]


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """One chat message. `text` is as it came: `scrub.clean` cuts and scrubs it before anything reads it."""

    event_id: Id
    customer_id: Id
    ts: int
    text: str
    lang: str | None = None
    channel: str | None = None
    role: Role = "customer"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order. `description` is as it came, likewise."""

    sku: BareId
    description: str
    quantity: Quantity
    unit_price: Price
    category: str | None = None


# 5,000 lines at 200 bytes each fill Kafka's default of 1 MB: a longer order comes in parts.
MAX_LINES = 5_000
Lines = Annotated[list[Line], msgspec.Meta(max_length=MAX_LINES)]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One order, or its cancellation or return: `status` gives the sign, quantities are positive."""

    event_id: Id
    customer_id: Id
    ts: int
    order_id: Id
    currency: Currency
    lines: Lines
    status: Status = "placed"


Event = Chat | Order


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stands. `epoch` names the incarnation of the topic: a topic deleted and
    created again starts its offsets from 0, and its records are not the old ones."""

    topic: str
    partition: int
    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as it came."""

    position: Position
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int  # Kafka's, epoch ms


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record, or one item of an envelope, that can't become an event: its bytes as they came,
    where they stood, and why. `item` is the index in an envelope."""

    record: Record
    reason: str
    detail: str
    value: bytes | None
    item: int | None = None


REASONS = frozenset(
    {
        "undecodable",  # the bytes are not the format that their content type says
        "invalid",  # well-formed, but a field is missing or has a value that is not allowed
        "too_large",  # the record is larger than `Limits.max_record_bytes`
        "future",  # `ts` is further ahead of the clock than `Limits.max_future_ms`
        "poison",  # it decodes, and a later stage fails on it alone, time after time
        "refused",  # the store's merge script refuses its delta
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What `decode` lets pass."""

    max_record_bytes: int
    max_future_ms: int
