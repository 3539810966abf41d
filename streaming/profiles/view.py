"""A profile as a reader sees it: decayed to a moment, strengths in 0..1, money as decimals. Pure.

The store keeps, per source (chat, order), facet and label, a weight `w` as of the event time `t` of
the newest evidence (see `schema`). Read at time T the sources are added:

    W(T) = sum over sources of w * 2^(-max(0, T - t) / half_life),    strength = 1 - e^(-W)

The clamp at T = t: an event may carry a time some minutes ahead of the reader's clock, and until
that moment it counts for what it weighs then, never for more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Literal

import msgpack
import msgspec

from streaming.errors import LimnerError
from streaming.profiles.schema import PRODUCT_FIELDS, PROFILE_VERSION, blob, unpack

# Evidence within one half-life still has most of its weight.
FRESH_HALF_LIVES = 1.0
# After four, 1/16 is left: a label that rests on one certain piece of evidence (w = 1) is then at
# strength 0.06, about to fall below EXPIRED_STRENGTH anyway.
STALE_HALF_LIVES = 4.0
# Below this a label says no more than the noise of a calibrated model that is 95 % sure.
EXPIRED_STRENGTH = 0.05

MONEY_PLACES = -4  # schema's money is in ten-thousandths

Freshness = Literal["FRESH", "STALE", "EXPIRED"]


class ProfileUnreadable(LimnerError):
    """A stored profile is damaged, or was written by a newer limner than this one."""


# gc=False below: these hold strings and numbers, which can't form a cycle, and a reader makes
# dozens a profile; having the collector visit them was a third of the time of reading one.
class LabelStrength(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """One label of one facet, at the moment of reading."""

    facet: str
    label: str
    strength: float
    """0..1; 1 - e^(-W)."""
    freshness: Freshness
    """By the age of the newest evidence in half-lives; EXPIRED also below strength 0.05."""
    evidence: int
    """Pieces of evidence ever seen."""
    last_seen: int
    """Event time of the newest evidence, epoch ms."""
    sources: list[str]
    """Which sources gave evidence, newest first."""
    event_ids: list[str]
    """The newest events behind it, by source as in `sources`, newest first."""
    model: str
    """Model version that gave the newest evidence."""


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of orders in one currency; `spent` counts every order placed, also those undone later."""

    spent: Decimal
    cancelled: Decimal
    returned: Decimal


class Product(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    sku: str
    description: str
    orders: int
    """Orders with it. May overstate for a product that displaced another (Space-Saving)."""
    quantity: float
    last_ts: int
    """Epoch ms."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer ordered, over all time."""

    placed: int
    cancelled: int
    returned: int
    first_ts: int | None
    """Event time of the first order placed, epoch ms; None when only cancellations or returns are known."""
    last_ts: int | None
    items: float
    lines: int
    money: dict[str, Money]
    """By ISO 4217 code."""
    basket_items: float | None
    """Mean items an order placed."""
    basket_value: Decimal | None
    """Mean value of an order placed; None when there is none, or when several currencies mix."""
    top_products: list[Product]
    """By orders, then quantity, then recency."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One customer, read at one moment."""

    customer_id: str
    labels: list[LabelStrength]
    """By facet; strongest first within a facet."""
    sentiment: float | None
    """-1..1: (positive - negative) / (positive + negative + neutral) of facet "sentiment", by weight."""
    orders: Orders | None
    events: dict[str, int]
    """Events applied, by source."""
    updated_ms: int
    """When limner last merged something, epoch ms of its clock."""
    version: int
    """Schema version of the stored profile."""

    @classmethod
    def from_bytes(cls, raw: bytes, now_ms: int) -> Profile:
        """Read a stored profile as of `now_ms` (epoch ms).

        Raises:
            ProfileUnreadable: damaged bytes, or a newer schema version than this limner knows.
        """
        with _naming_damage():
            stored = _decode(raw)
            evidence = _by_label(stored)
            return cls(
                customer_id=stored.id,
                labels=_labels(evidence, now_ms),
                sentiment=_sentiment(evidence, now_ms),
                orders=_orders(stored.o) if stored.o else None,
                events={source: content.n for source, content in sorted(stored.s.items())},
                updated_ms=stored.u,
                version=stored.v,
            )


def fence(raw: bytes) -> dict[str, int]:
    """The stored fence, "topic/partition/epoch" -> highest applied offset: for tools, not for readers.

    Raises:
        ProfileUnreadable: as `Profile.from_bytes`.
    """
    with _naming_damage():
        return _decode(raw).f


# --- the stored map, field by field as `schema` gives it --------------------------------------------


class _Sum(msgspec.Struct, gc=False, array_like=True):
    """Evidence of one source for one label."""

    w: float
    t: int
    n: int
    model: str
    ids: str


class _Source(msgspec.Struct):
    n: int
    t: int
    l: dict[str, list[int | float | str]] = {}  # noqa: E741  the stored name; msgspec copies the default


class _Product(msgspec.Struct, gc=False, array_like=True):
    quantity: float
    ts: int
    description: str


class _Orders(msgspec.Struct):
    n: int = 0
    c: int = 0
    r: int = 0
    a: int | None = None
    z: int | None = None
    q: float = 0.0
    k: int = 0
    m: dict[str, tuple[int, int, int]] = {}
    p: str = ""


class _Stored(msgspec.Struct):
    v: int
    id: str
    u: int
    f: dict[str, int] = {}
    s: dict[str, _Source] = {}
    o: _Orders | None = None


class _Version(msgspec.Struct):
    v: int


_VERSION = msgspec.msgpack.Decoder(_Version)
_SUM = msgspec.msgpack.Decoder(_Sum)
_PRODUCT = msgspec.msgpack.Decoder(_Product)

# What the readers raise on bytes that are no profile.
_DAMAGE = (
    msgspec.DecodeError,
    msgpack.UnpackException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


def _decode(raw: bytes) -> _Stored:
    version = _VERSION.decode(raw).v  # first: a newer profile need not have the shape below
    if version > PROFILE_VERSION:
        raise ProfileUnreadable(
            f"the profile has schema version {version}, this limner reads up to {PROFILE_VERSION}: upgrade limner"
        )
    return msgspec.convert(unpack(raw), _Stored)


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ProfileUnreadable(f"the stored profile is damaged ({error}): rebuild it from the topics") from None


# --- from stored evidence to strengths --------------------------------------------------------------

# (source, half_life_ms, sum) of each source, newest evidence first
_Evidence = list[tuple[str, float, _Sum]]


def _by_label(stored: _Stored) -> dict[tuple[str, str], _Evidence]:
    """Evidence by (facet, label), sources that agree on the time in order of their name: however the
    store orders its maps, sums come out the same to the last bit."""
    evidence: dict[tuple[str, str], _Evidence] = {}
    for source in sorted(stored.s):
        for facet, flat in stored.s[source].l.items():
            half_life_ms = float(flat[0])
            for at in range(1, len(flat), 2):
                found = evidence.setdefault((facet, str(flat[at])), [])
                found.append((source, half_life_ms, _SUM.decode(blob(str(flat[at + 1])))))
                if len(found) > 1:
                    found.sort(key=_newest_first)
    return evidence


def _newest_first(entry: tuple[str, float, _Sum]) -> int:
    return -entry[2].t


def _weight(evidence: _Evidence, now_ms: int) -> float:
    weight = 0.0
    for _, half_life_ms, it in evidence:
        weight += it.w * 2.0 ** (-max(0, now_ms - it.t) / half_life_ms)
    return weight


def strength_of(weight: float) -> float:
    """Evidence weight >= 0 to strength 0..1: 1 - e^(-weight)."""
    return -math.expm1(-weight)


def _freshness(age_ms: int, half_life_ms: float, strength: float) -> Freshness:
    if strength < EXPIRED_STRENGTH or age_ms > STALE_HALF_LIVES * half_life_ms:
        return "EXPIRED"
    return "FRESH" if age_ms <= FRESH_HALF_LIVES * half_life_ms else "STALE"


def _labels(evidence: dict[tuple[str, str], _Evidence], now_ms: int) -> list[LabelStrength]:
    labels = []
    for (facet, label), found in evidence.items():
        strength = strength_of(_weight(found, now_ms))
        _, half_life_ms, newest = found[0]
        labels.append(
            LabelStrength(
                facet=facet,
                label=label,
                strength=strength,
                freshness=_freshness(now_ms - newest.t, half_life_ms, strength),
                evidence=sum([it.n for _, _, it in found]),
                last_seen=newest.t,
                sources=[source for source, _, _ in found],
                event_ids=[event_id for _, _, it in found if it.ids for event_id in reversed(it.ids.split("\n"))],
                model=newest.model,
            )
        )
    labels.sort(key=lambda label: (label.facet, -label.strength, label.label))
    return labels


def _sentiment(evidence: dict[tuple[str, str], _Evidence], now_ms: int) -> float | None:
    positive, negative, neutral = (
        _weight(evidence.get(("sentiment", label), []), now_ms) for label in ("positive", "negative", "neutral")
    )
    total = positive + negative + neutral
    return (positive - negative) / total if total > 0 else None


def _orders(stored: _Orders) -> Orders:
    money = {
        currency: Money(spent=_decimal(spent), cancelled=_decimal(cancelled), returned=_decimal(returned))
        for currency, (spent, cancelled, returned) in sorted(stored.m.items())
    }
    basket_value = None
    if stored.n and len(stored.m) == 1:
        ((spent, _, _),) = stored.m.values()
        basket_value = (Decimal(spent) / stored.n).quantize(Decimal(1)).scaleb(MONEY_PLACES)
    return Orders(
        placed=stored.n,
        cancelled=stored.c,
        returned=stored.r,
        first_ts=stored.a,
        last_ts=stored.z,
        items=stored.q,
        lines=stored.k,
        money=money,
        basket_items=stored.q / stored.n if stored.n else None,
        basket_value=basket_value,
        top_products=_products(stored.p),
    )


def _products(packed: str) -> list[Product]:
    flat = unpack(blob(packed)) if packed else []
    products = []
    for at in range(0, len(flat), PRODUCT_FIELDS):
        sku, orders, rest = flat[at : at + PRODUCT_FIELDS]
        it = _PRODUCT.decode(blob(rest))
        products.append(
            Product(sku=sku, description=it.description, orders=orders, quantity=it.quantity, last_ts=it.ts)
        )
    products.sort(key=lambda product: (-product.orders, -product.quantity, -product.last_ts, product.sku))
    return products


def _decimal(ten_thousandths: int) -> Decimal:
    return Decimal(ten_thousandths).scaleb(MONEY_PLACES)
