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
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f{}]+$")]
Currency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")]
# A line of a million pieces at a million each still fits MONEY times an order of 1,000 such lines.
Quantity = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """One chat message. `text` is scrubbed and cut to the limit once `decode` returns it."""

    event_id: Id
    customer_id: Id
    ts: int
    text: str
    lang: str | None = None
    channel: str | None = None
    role: Literal["customer", "agent"] = "customer"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order. `description` is scrubbed and cut likewise."""

    sku: Id
    description: str
    quantity: Quantity
    unit_price: Price
    category: str | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One order, or its cancellation or return: `status` gives the sign, quantities are positive."""

    event_id: Id
    customer_id: Id
    ts: int
    order_id: Id
    currency: Currency
    lines: Annotated[list[Line], msgspec.Meta(max_length=5_000)]
    status: Literal["placed", "cancelled", "returned"] = "placed"


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
