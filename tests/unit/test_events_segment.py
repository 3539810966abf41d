"""`track` calls of the Segment spec: orders completed, cancelled, refunded."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from streaming.events import Line, Order, decode
from tests.unit.test_events_decode import LIMITS, MSGPACK, NOW, SECRET, as_json, changed, one, record, refused, without

PRODUCT = {
    "product_id": "p1",
    "sku": "G-32",
    "name": "Monopoly: 3rd Edition",
    "price": 19,
    "quantity": 2,
    "category": "Games",
}
PROPERTIES = {"order_id": "50314b8e9bcf000000000000", "currency": "USD", "total": 57.5, "products": [PRODUCT]}
TRACK = {
    "type": "track",
    "event": "Order Completed",
    "messageId": "m1",
    "userId": "c1",
    "anonymousId": "anon",
    "timestamp": "2024-05-01T12:00:00.000Z",
    "context": {"ip": "0.0.0.0"},
    "properties": PROPERTIES,
}
ORDER = Order(
    event_id="m1",
    customer_id="c1",
    ts=1_714_564_800_000,
    order_id="50314b8e9bcf000000000000",
    currency="USD",
    lines=[Line(sku="G-32", description="Monopoly: 3rd Edition", quantity=2, unit_price=19, category="Games")],
)


def with_product(**changes: object) -> dict[str, Any]:
    return changed(TRACK, properties=changed(PROPERTIES, products=[PRODUCT, changed(PRODUCT, **changes)]))


@pytest.mark.parametrize(
    ("event", "status"),
    [("Order Completed", "placed"), ("Order Cancelled", "cancelled"), ("Order Refunded", "returned")],
)
def test_an_order(event: str, status: str) -> None:
    order = one(changed(TRACK, event=event), "order")
    assert isinstance(order, Order) and order.status == status
    assert one(TRACK, "order") == ORDER


def test_in_msgpack_and_in_an_envelope() -> None:
    assert decode(record(msgpack.packb(TRACK), MSGPACK), "order", LIMITS, NOW) == ([ORDER], [])
    events, dead = decode(record(as_json({"events": [TRACK, changed(TRACK, event=SECRET)]})), "order", LIMITS, NOW)
    assert events == [ORDER] and [letter.item for letter in dead] == [1]


@pytest.mark.parametrize("anonymous", [without(TRACK, "userId"), changed(TRACK, userId=None)])
def test_a_customer_who_is_not_logged_in(anonymous: dict[str, Any]) -> None:
    assert one(anonymous, "order").customer_id == "anon"


def test_what_products_may_lack() -> None:
    bare = {"product_id": "p1", "price": 19.99}
    order = one(changed(TRACK, properties=changed(PROPERTIES, products=[bare])), "order")
    assert isinstance(order, Order)
    assert order.lines == [Line(sku="p1", description="", quantity=1, unit_price=19.99)]
    empty = one(changed(TRACK, properties=without(PROPERTIES, "products")), "order")
    assert isinstance(empty, Order) and empty.lines == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            changed(TRACK, event="Product Viewed", properties={}),
            "event: Expected one of Order Completed, Order Cancelled",
        ),
        (changed(TRACK, event=5), "event: Expected `str`"),
        (without(TRACK, "event"), "`event`"),
        (without(TRACK, "messageId"), "`messageId`"),
        (without(TRACK, "timestamp"), "`timestamp`"),
        (without(without(TRACK, "userId"), "anonymousId"), "`userId`"),
        (changed(TRACK, userId=f"{SECRET}{{"), "userId: "),
        (changed(TRACK, messageId=f"{SECRET}\x00"), "messageId: "),
        (changed(TRACK, timestamp="2024-05-01T12:00:00"), "timestamp: Expected `datetime` with a timezone"),
        (changed(TRACK, timestamp=1_714_564_800), "seconds"),
        (
            changed(TRACK, properties=without(PROPERTIES, "order_id")),
            "properties: Object missing required field `order_id`",
        ),
        (
            changed(TRACK, properties=without(PROPERTIES, "currency")),
            "properties: Object missing required field `currency`",
        ),
        (changed(TRACK, properties=changed(PROPERTIES, currency=SECRET)), "properties.currency: "),
        (changed(TRACK, properties=changed(PROPERTIES, products=[PRODUCT] * 5001)), "properties.products: "),
        (with_product(price=SECRET), "properties.products[1].price: Expected `float`, got `str`"),
        (with_product(price=-1), "properties.products[1].price: "),
        (with_product(price=None), "properties.products[1].price: "),
        (with_product(quantity=0), "properties.products[1].quantity: "),
        (with_product(sku=None, product_id=None), "properties.products[1]: Object missing `sku` and `product_id`"),
        (with_product(sku=f"{SECRET}\n"), "sku: "),
    ],
)
def test_refused(content: object, says: str) -> None:
    letter = refused(as_json(content), "order")
    assert letter.reason == "invalid" and says in letter.detail


def test_an_order_on_the_chat_topic() -> None:
    letter = refused(as_json(TRACK), "chat")
    assert letter.reason == "invalid" and "on the chat topic" in letter.detail


def test_too_far_ahead() -> None:
    assert refused(as_json(changed(TRACK, timestamp=NOW * 2)), "order").reason == "future"
