"""A profile as the input of a ranking model: one float32 a name. Pure.

Names:

    FACET/LABEL              strength 0..1; 0 for a label that the customer doesn't show
    sentiment                -1..1
    events.SOURCE            events applied, by source (chat, order); 0 for a source never seen
    orders.recency           days since the last order
    orders.frequency         orders placed, over all time
    orders.monetary          spent less cancelled and returned, in the customer's only currency
    orders.monetary.CURRENCY the same in one currency (ISO 4217); 0 for one never used
    orders.cancelled, orders.returned, orders.items, orders.lines
    orders.basket_items      mean items an order
    orders.basket_value      mean value of an order, in the customer's only currency

What a profile doesn't tell is NaN, which gradient-boosted trees take for "missing": the recency and the baskets of a
customer without orders, the sentiment of one without evidence, money of several currencies mixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streaming.client.calls import now_ms
from streaming.client.errors import InvalidArgument
from streaming.errors import LimnerError
from streaming.profiles.view import Money, Orders, Profile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DAY_MS = 86_400_000

_CURRENCY = re.compile(r"orders\.monetary\.([A-Z]{3})")


def as_features(profile: Profile, names: Sequence[str], *, at_ms: int | None = None) -> NDArray[np.float32]:
    """The values of `names` as a float32 vector of shape (len(names),), in their order.

    Args:
        at_ms: the moment from which recency counts, epoch ms; now by default. Strengths are as of the reading.

    Raises:
        InvalidArgument: a name is none of those above. A facet or a label that no pack has is not noticed: it looks
            like one that the customer doesn't show.
        LimnerError: numpy is not installed.
    """
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise LimnerError("as_features needs numpy: pip install 'limner[features]'") from None
    strengths = {f"{it.facet}/{it.label}": it.strength for it in profile.labels}
    at = now_ms() if at_ms is None else at_ms
    return np.array([strengths[it] if it in strengths else _value(profile, it, at) for it in names], np.float32)


def _value(profile: Profile, name: str, at_ms: int) -> float:
    facet, slash, label = name.partition("/")
    if slash and facet and label:
        return 0.0
    if name == "sentiment":
        return math.nan if profile.sentiment is None else profile.sentiment
    family, _, rest = name.partition(".")
    if family == "events" and rest:
        return profile.events.get(rest, 0)
    if name in _OF_ORDERS:
        return _OF_ORDERS[name](profile.orders, at_ms) if profile.orders else _WITHOUT_ORDERS.get(name, math.nan)
    if in_currency := _CURRENCY.fullmatch(name):
        money = profile.orders.money.get(in_currency[1]) if profile.orders else None
        return _net(money) if money else 0.0
    known = ", ".join(("FACET/LABEL", "sentiment", "events.SOURCE", *_OF_ORDERS, "orders.monetary.CURRENCY"))
    raise InvalidArgument("names", f"{name!r} is no feature; there are {known}")


def _net(money: Money) -> float:
    return float(money.spent - money.cancelled - money.returned)


def _monetary(orders: Orders, at_ms: int) -> float:
    return _net(*orders.money.values()) if len(orders.money) == 1 else math.nan if orders.money else 0.0


def _known(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]  # int, float or Decimal


_OF_ORDERS: dict[str, Callable[[Orders, int], float]] = {
    "orders.recency": lambda it, at_ms: math.nan if it.last_ts is None else max(0, at_ms - it.last_ts) / DAY_MS,
    "orders.frequency": lambda it, _: it.placed,
    "orders.monetary": _monetary,
    "orders.cancelled": lambda it, _: it.cancelled,
    "orders.returned": lambda it, _: it.returned,
    "orders.items": lambda it, _: it.items,
    "orders.lines": lambda it, _: it.lines,
    "orders.basket_items": lambda it, _: _known(it.basket_items),
    "orders.basket_value": lambda it, _: _known(it.basket_value),
}
# Of those, the ones that are a count: none is 0, not unknown.
_WITHOUT_ORDERS = dict.fromkeys(
    ("orders.frequency", "orders.monetary", "orders.cancelled", "orders.returned", "orders.items", "orders.lines"), 0.0
)
