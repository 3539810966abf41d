"""`track` calls of the Segment spec's e-commerce events v2: orders completed, cancelled and refunded."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from streaming.errors import InvalidEvent
from streaming.events.types import MAX_LINES, BareId, Currency, Limits, Line, Order, Price, Quantity, Status
from streaming.events.wire import Attributes, Codec, Time, check_ids, epoch_ms, fill_id, fill_time, reader

_STATUS: Final[dict[str, Status]] = {
    "Order Completed": "placed",
    "Order Cancelled": "cancelled",
    "Order Refunded": "returned",
}


class _Product(msgspec.Struct, frozen=True):
    """The spec asks for none of these. An item without a quantity is one item; one without a price
    would make the customer's spending wrong without a sign, so it is refused."""

    price: Price
    sku: BareId | None = None
    product_id: BareId | None = None
    name: str | None = None
    quantity: Quantity = 1.0
    category: str | None = None


class _Properties(msgspec.Struct, frozen=True):
    order_id: BareId
    currency: Currency
    products: Annotated[list[_Product], msgspec.Meta(max_length=MAX_LINES)] = []


class _Call(msgspec.Struct, frozen=True):
    event: str


class _Track(msgspec.Struct, frozen=True, rename="camel"):
    properties: _Properties
    message_id: BareId | None = None
    user_id: BareId | None = None
    anonymous_id: BareId | None = None
    timestamp: Time | None = None


_read_call = reader(_Call)
_read_track = reader(_Track)


def order(body: bytes | msgspec.Raw, codec: Codec, around: Attributes, limits: Limits, now_ms: int) -> Order:
    """Raises InvalidEvent."""
    status = _STATUS.get(_read_call(body, codec).event)
    if status is None:  # before the rest: other calls have other properties
        raise InvalidEvent("invalid", f"event: Expected one of {', '.join(_STATUS)}")
    track = _read_track(body, codec)
    properties = track.properties
    event_id = track.message_id or fill_id("messageId", around.event_id)
    customer_id = track.user_id or track.anonymous_id or fill_id("userId", around.customer_id)
    lines = [_line(index, product) for index, product in enumerate(properties.products)]
    check_ids(
        ("messageId", "userId", "order_id", "sku"),
        event_id,
        customer_id,
        properties.order_id,
        "".join([line.sku for line in lines]),
    )
    return Order(
        event_id=event_id,
        customer_id=customer_id,
        ts=epoch_ms(fill_time("timestamp", around.ts) if track.timestamp is None else track.timestamp, limits, now_ms),
        order_id=properties.order_id,
        currency=properties.currency,
        lines=lines,
        status=status,
    )


def _line(index: int, product: _Product) -> Line:
    sku = product.sku or product.product_id
    if sku is None:
        raise InvalidEvent("invalid", f"properties.products[{index}]: Object missing `sku` and `product_id`")
    return Line(
        sku=sku,
        description=product.name or "",
        quantity=product.quantity,
        unit_price=product.price,
        category=product.category,
    )
