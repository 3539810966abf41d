"""limner's own format: the fields of `types.Chat` and `types.Order` by name, other fields ignored."""

from __future__ import annotations

import msgspec

from streaming.events.types import BareId, Chat, Currency, Limits, Lines, Order, Role, Status
from streaming.events.wire import Attributes, Codec, Time, check_ids, epoch_ms, fill_id, fill_time, reader


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What may also come from around the event."""

    event_id: BareId | None = None
    customer_id: BareId | None = None
    ts: Time | None = None


class _ChatFields(_Fields, frozen=True, kw_only=True):
    text: str
    lang: str | None = None
    channel: str | None = None
    role: Role = "customer"


class _OrderFields(_Fields, frozen=True, kw_only=True):
    order_id: BareId
    currency: Currency
    lines: Lines
    status: Status = "placed"


_read_chat = reader(_ChatFields)
_read_order = reader(_OrderFields)


def chat(body: bytes | msgspec.Raw, codec: Codec, around: Attributes, limits: Limits, now_ms: int) -> Chat:
    """Raises InvalidEvent."""
    found = _read_chat(body, codec)
    event_id = found.event_id or fill_id("event_id", around.event_id)
    customer_id = found.customer_id or fill_id("customer_id", around.customer_id)
    check_ids(("event_id", "customer_id"), event_id, customer_id)
    return Chat(
        event_id=event_id,
        customer_id=customer_id,
        ts=epoch_ms(fill_time("ts", around.ts) if found.ts is None else found.ts, limits, now_ms),
        text=found.text,
        lang=found.lang,
        channel=found.channel,
        role=found.role,
    )


def order(body: bytes | msgspec.Raw, codec: Codec, around: Attributes, limits: Limits, now_ms: int) -> Order:
    """Raises InvalidEvent."""
    found = _read_order(body, codec)
    event_id = found.event_id or fill_id("event_id", around.event_id)
    customer_id = found.customer_id or fill_id("customer_id", around.customer_id)
    check_ids(
        ("event_id", "customer_id", "order_id", "sku"),
        event_id,
        customer_id,
        found.order_id,
        "".join([line.sku for line in found.lines]),
    )
    return Order(
        event_id=event_id,
        customer_id=customer_id,
        ts=epoch_ms(fill_time("ts", around.ts) if found.ts is None else found.ts, limits, now_ms),
        order_id=found.order_id,
        currency=found.currency,
        lines=found.lines,
        status=found.status,
    )
