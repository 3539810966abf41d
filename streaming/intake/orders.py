"""Lines become orders, in constant memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from streaming.events.types import MAX_LINES, Line, Order
from streaming.intake.rows import OrderKey, OrderLine, digest

# Files list an order's lines together, but not always without others between (invoice 542806 of
# Online Retail, two lines apart). An order stays open for so many lines of the file: about 10 MB.
WINDOW_LINES = 10_000
# Orders that were closed are remembered so that a late part is noticed: 65,536 hashes are about 8 MB.
CLOSED_KEPT = 65_536

_ENCODER = msgspec.json.Encoder()


@dataclass(slots=True)
class _Open:
    first: int
    last: int
    ts: int
    lines: list[Line] = field(default_factory=list)


def group(rows: Iterable[tuple[int, OrderLine]], late: Callable[[int], None]) -> Iterator[tuple[int, Order]]:
    """From (line number, order line) to (number of its first line, order).

    Lines of the same order id, customer, currency and status become one event, even with other
    orders between, as long as each is within `WINDOW_LINES` of the one before: a customer's number
    of orders is then the number of distinct order ids. An order's time is that of its latest line,
    so that a customer's newest purchase is the newest line's time.

    The event id is the order id with a digest of the content. Sending a file again repeats the
    ids; a part that comes after the window, or beyond `MAX_LINES`, has an id of its own and counts
    as one more order, which `late` is told by line number.
    """
    open_orders: OrderedDict[OrderKey, _Open] = OrderedDict()
    closed: OrderedDict[int, None] = OrderedDict()

    def close(key: OrderKey) -> tuple[int, Order]:
        closed[hash(key)] = None
        closed.move_to_end(hash(key))
        if len(closed) > CLOSED_KEPT:
            closed.popitem(last=False)
        order = open_orders.pop(key)
        return order.first, _event(key, order)

    for number, (key, ts, line) in rows:
        order = open_orders.get(key)
        if order is None:
            if hash(key) in closed:
                late(number)
            order = open_orders[key] = _Open(number, number, ts)
        open_orders.move_to_end(key)
        order.last = number
        order.ts = max(order.ts, ts)
        order.lines.append(line)
        if len(order.lines) == MAX_LINES:
            yield close(key)
        while open_orders:
            oldest, held = next(iter(open_orders.items()))
            if number - held.last < WINDOW_LINES:
                break
            yield close(oldest)
    while open_orders:
        yield close(next(iter(open_orders)))


def _event(key: OrderKey, order: _Open) -> Order:
    content = _ENCODER.encode([key, order.ts, order.lines])
    # 32 bits tell the parts of one order apart; the order id does the rest (an id has at most 128 characters).
    return Order(
        event_id=f"{key.order_id[:119]}#{digest(content, size=4)}",
        customer_id=key.customer_id,
        ts=order.ts,
        order_id=key.order_id,
        currency=key.currency,
        lines=order.lines,
        status=key.status,
    )
