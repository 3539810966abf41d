"""A profile as a reader sees it: decayed to a moment, strengths in 0..1, money as decimals. Pure.

The store keeps, per source (chat, order), facet and label, a weight `w` as of the event time `t` of
the newest evidence (see `schema`). Read at time T the sources are added:

    W(T) = sum over sources of w * 2^(-max(0, T - t) / half_life),    strength = 1 - e^(-W)

The clamp at T = t: an event may carry a time some minutes ahead of the reader's clock, and until
that moment it counts for what it weighs then, never for more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import exp2
from typing import Literal

import msgspec

from streaming.profiles import stored
from streaming.profiles.stored import ByLabel, Evidence, Product, ProfileUnreadable, StoredOrders

__all__ = ["LabelStrength", "Money", "Orders", "Product", "Profile", "ProfileUnreadable", "fence", "read"]

# Evidence within one half-life still has most of its weight.
FRESH_HALF_LIVES = 1.0
# After four, 1/16 is left: a label that rests on one certain piece of evidence (w = 1) is then at
# strength 0.06, about to fall below EXPIRED_STRENGTH anyway.
STALE_HALF_LIVES = 4.0
# Below this a label says no more than the noise of a calibrated model that is 95 % sure.
EXPIRED_STRENGTH = 0.05

MONEY_PLACES = -4  # schema's money is in ten-thousandths

Freshness = Literal["FRESH", "STALE", "EXPIRED"]


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


class Profile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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
    linked: list[str] = []
    """Other ids of the same person, whose events count here too; in JSON absent where there are none."""
    consent: dict[str, bool] = {}
    """Purpose -> what the customer said last; in JSON absent before the first word."""

    @classmethod
    def from_bytes(cls, raw: bytes, now_ms: int) -> Profile:
        """Read a stored profile as of `now_ms` (epoch ms).

        Raises:
            ProfileUnreadable: damaged bytes, or a newer schema version than this limner knows.
        """
        with stored.naming_damage():
            content = stored.decode(raw)
            return read(content.id, content, stored.by_label(content), stored.products(content), now_ms)


def read(
    customer_id: str,
    content: stored.Stored,
    evidence: ByLabel,
    products: Iterable[Product],
    now_ms: int,
    linked: Sequence[str] = (),
) -> Profile:
    """The view of a stored profile, or of what `fold` makes of several."""
    if content.e:
        evidence = _within_retention(evidence, content.e, now_ms)
    return Profile(
        customer_id=customer_id,
        labels=_labels(evidence, now_ms),
        sentiment=_sentiment(evidence, now_ms),
        orders=_orders(content.o, products) if content.o else None,
        events={source: it.n for source, it in sorted(content.s.items())},
        updated_ms=content.u,
        version=content.v,
        linked=list(linked),
        consent={purpose: register[0] for purpose, register in sorted(content.c.items())},
    )


def fence(raw: bytes) -> dict[str, int]:
    """The stored fence, "topic/partition/epoch" -> highest applied offset: for tools, not for readers.

    Raises:
        ProfileUnreadable: as `Profile.from_bytes`.
    """
    with stored.naming_damage():
        return stored.decode(raw).f


def _within_retention(evidence: ByLabel, retention_ms: dict[str, int], now_ms: int) -> ByLabel:
    """Without what is kept no longer, though the next merge has yet to remove it."""
    kept: ByLabel = {}
    for (facet, label), found in evidence.items():
        keep = retention_ms.get(facet)
        if found := [it for it in found if keep is None or it[2].t >= now_ms - keep]:
            kept[facet, label] = found
    return kept


def _weight(evidence: Evidence, now_ms: int) -> float:
    weight = 0.0
    for _, half_life_ms, it in evidence:
        weight += it.w * exp2(-max(0, now_ms - it.t) / half_life_ms)
    return weight


def strength_of(weight: float) -> float:
    """Evidence weight >= 0 to strength 0..1: 1 - e^(-weight)."""
    return -math.expm1(-weight)


def _freshness(age_ms: int, half_life_ms: float, strength: float) -> Freshness:
    if strength < EXPIRED_STRENGTH or age_ms > STALE_HALF_LIVES * half_life_ms:
        return "EXPIRED"
    return "FRESH" if age_ms <= FRESH_HALF_LIVES * half_life_ms else "STALE"


def _labels(evidence: ByLabel, now_ms: int) -> list[LabelStrength]:
    """One loop over each label's sources: a profile has dozens, and this is most of the time of reading one."""
    labels = []
    for (facet, label), found in evidence.items():
        weight, count = 0.0, 0
        sources, event_ids = [], []
        for source, half_life_ms, it in found:
            age_ms = now_ms - it.t
            weight += it.w * exp2(-age_ms / half_life_ms) if age_ms > 0 else it.w
            count += it.n
            sources.append(source)
            if it.ids:
                event_ids += it.ids.split("\n")[::-1]
        _, half_life_ms, newest = found[0]
        strength = strength_of(weight)
        labels.append(
            LabelStrength(
                facet=facet,
                label=label,
                strength=strength,
                freshness=_freshness(now_ms - newest.t, half_life_ms, strength),
                evidence=count,
                last_seen=newest.t,
                sources=sources,
                event_ids=event_ids,
                model=newest.model,
            )
        )
    labels.sort(key=_strongest_first)
    return labels


def _strongest_first(it: LabelStrength) -> tuple[str, float, str]:
    return it.facet, -it.strength, it.label


def _sentiment(evidence: ByLabel, now_ms: int) -> float | None:
    positive, negative, neutral = (
        _weight(evidence.get(("sentiment", label), []), now_ms) for label in ("positive", "negative", "neutral")
    )
    total = positive + negative + neutral
    return (positive - negative) / total if total > 0 else None


def _orders(content: StoredOrders, products: Iterable[Product]) -> Orders:
    money = {
        currency: Money(spent=_decimal(spent), cancelled=_decimal(cancelled), returned=_decimal(returned))
        for currency, (spent, cancelled, returned) in sorted(content.m.items())
    }
    basket_value = None
    if content.n and len(content.m) == 1:
        ((spent, _, _),) = content.m.values()
        basket_value = (Decimal(spent) / content.n).quantize(Decimal(1)).scaleb(MONEY_PLACES)
    return Orders(
        placed=content.n,
        cancelled=content.c,
        returned=content.r,
        first_ts=content.a,
        last_ts=content.z,
        items=content.q,
        lines=content.k,
        money=money,
        basket_items=content.q / content.n if content.n else None,
        basket_value=basket_value,
        top_products=sorted(products, key=most_bought),
    )


def most_bought(it: Product) -> tuple[int, float, int, str]:
    return -it.orders, -it.quantity, -it.last_ts, it.sku


def _decimal(ten_thousandths: int) -> Decimal:
    return Decimal(ten_thousandths).scaleb(MONEY_PLACES)
