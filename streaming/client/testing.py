"""Stand-ins for a caller's own tests: the clients' methods over profiles that a test puts there, no Redis.

    profiles = FakeProfileClient()
    profiles.put("c1", labels={"interests/tea": 0.8}, orders={"placed": 3})
    assert greet(profiles, "c1") == "Fancy a tea?"

    profiles.error = StoreUnavailable("away")  # each call from here on raises it

They check arguments as the real clients do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec

from streaming.client import audience as audiences
from streaming.client import calls
from streaming.client.audience import Audience, Cursor
from streaming.client.errors import InvalidArgument, UnknownFacet
from streaming.client.explain import Contribution, ExplainedLabel, Explanation
from streaming.client.tokens import Token
from streaming.controls.types import Purpose
from streaming.errors import LimnerError
from streaming.profiles.view import EXPIRED_STRENGTH, LabelStrength, Orders, Profile

# Any would do: strengths of a fake don't decay.
HALF_LIFE_MS = 7 * 86_400_000

_ORDERS: dict[str, Any] = {
    "placed": 0, "cancelled": 0, "returned": 0, "first_ts": None, "last_ts": None, "items": 0.0, "lines": 0,
    "money": {}, "basket_items": None, "basket_value": None, "top_products": [],
}  # fmt: skip
_MONEY = {"spent": 0, "cancelled": 0, "returned": 0}


class FakeProfileClient:
    """`ProfileClient` without a store. Strengths stay as they were put."""

    def __init__(self, *, consent_default: Mapping[str, bool] | None = None) -> None:
        self.error: LimnerError | None = None
        self._consent_default = calls.checked_defaults(consent_default)
        self._profiles: dict[str, Profile] = {}

    def put(
        self,
        customer_id: str,
        *,
        labels: Mapping[str, float] | Sequence[LabelStrength] = (),
        orders: Orders | Mapping[str, Any] | None = None,
        sentiment: float | None = None,
        events: Mapping[str, int] | None = None,
        consent: Mapping[Purpose, bool] | None = None,
    ) -> Profile:
        """Let there be a profile; one of before is replaced.

        Args:
            labels: "facet/label" -> strength 0..1, seen just now in one chat; or LabelStrengths, to say more.
            orders: fields of Orders, those left out as of a customer who has none; `money` by currency, as text or
                Decimal: {"GBP": {"spent": "12.50"}}.
            consent: purpose -> what the customer said.

        Raises:
            InvalidArgument
        """
        now_ms = calls.now_ms()
        listed = [_label(*it, now_ms) for it in labels.items()] if isinstance(labels, Mapping) else list(labels)
        profile = Profile(
            customer_id=calls.checked_id(customer_id),
            labels=sorted(listed, key=lambda it: (it.facet, -it.strength, it.label)),
            sentiment=sentiment,
            orders=_orders(orders),
            events=dict(events if events is not None else {"chat": 1}),
            updated_ms=now_ms,
            version=1,
            consent={str(purpose): granted for purpose, granted in (consent or {}).items()},
        )
        self._profiles[customer_id] = profile
        return profile

    def get(self, customer_id: str, *, purpose: Purpose | None = None) -> Profile | None:
        calls.checked_purpose(purpose)
        calls.checked_id(customer_id)
        self._fail()
        return calls.for_purpose(self._profiles.get(customer_id), purpose, self._consent_default)

    def get_many(self, ids: Iterable[str]) -> dict[str, Profile | None]:
        wanted = calls.checked_ids(ids)
        self._fail()
        return {customer_id: self._profiles.get(customer_id) for customer_id in wanted}

    def audience(
        self, facet: str, label: str, limit: int = 100, min_strength: float = 0.0, cursor: str | None = None
    ) -> Audience:
        page = audiences.query(facet, label, limit, min_strength, cursor)
        self._fail()
        shown = [(it, customer_id) for customer_id, profile in self._profiles.items() for it in profile.labels]
        if not any(it.facet == facet for it, _ in shown):
            raise UnknownFacet(facet)
        members = sorted(
            (
                (it.strength, customer_id.encode())
                for it, customer_id in shown
                if (it.facet, it.label) == (facet, label)
            ),
            reverse=True,
        )
        if page.after is not None:
            members = [it for it in members if it < (page.after.score, page.after.member)]
        members = [it for it in members if it[0] >= min_strength]
        more = len(members) > limit
        members = members[:limit]
        return Audience(
            [(member.decode(), strength) for strength, member in members],
            audiences.encode(Cursor(facet, label, *members[-1], ties=0)) if more else None,
        )

    def explain(self, customer_id: str) -> Explanation | None:
        profile = self.get(customer_id)
        if profile is None:
            return None
        return Explanation(customer_id, calls.now_ms(), [_explained(it) for it in profile.labels], {})

    def wait_for(self, token: str | Token, timeout_s: float, *, purpose: Purpose | None = None) -> Profile:
        """The profile, if it was put; else NotYetVisible at once."""
        calls.checked_purpose(purpose)
        token = calls.checked_token(token, timeout_s)
        profile = self.get(token.customer_id, purpose=purpose)
        if profile is None:
            raise calls.not_yet(token, timeout_s)
        return profile

    def ping(self) -> None:
        self._fail()

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class FakeAsyncProfileClient:
    """`AsyncProfileClient` without a store: `FakeProfileClient` with awaits."""

    def __init__(self, *, consent_default: Mapping[str, bool] | None = None) -> None:
        self._fake = FakeProfileClient(consent_default=consent_default)
        self.put = self._fake.put

    @property
    def error(self) -> LimnerError | None:
        return self._fake.error

    @error.setter
    def error(self, error: LimnerError | None) -> None:
        self._fake.error = error

    async def get(self, customer_id: str, *, purpose: Purpose | None = None) -> Profile | None:
        return self._fake.get(customer_id, purpose=purpose)

    async def get_many(self, ids: Iterable[str]) -> dict[str, Profile | None]:
        return self._fake.get_many(ids)

    async def audience(
        self, facet: str, label: str, limit: int = 100, min_strength: float = 0.0, cursor: str | None = None
    ) -> Audience:
        return self._fake.audience(facet, label, limit, min_strength, cursor)

    async def explain(self, customer_id: str) -> Explanation | None:
        return self._fake.explain(customer_id)

    async def wait_for(self, token: str | Token, timeout_s: float, *, purpose: Purpose | None = None) -> Profile:
        return self._fake.wait_for(token, timeout_s, purpose=purpose)

    async def ping(self) -> None:
        self._fake.ping()

    async def close(self) -> None:
        self._fake.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _label(name: str, strength: float, now_ms: int) -> LabelStrength:
    facet, slash, label = name.partition("/")
    if not (facet and slash and label):
        raise InvalidArgument("labels", f"{name!r} must be facet/label")
    if not 0 <= strength <= 1:
        raise InvalidArgument("labels", f"the strength of {name} must be 0 to 1")
    return LabelStrength(
        facet=facet, label=label, strength=strength, freshness="EXPIRED" if strength < EXPIRED_STRENGTH else "FRESH",
        evidence=1, last_seen=now_ms, sources=["chat"], event_ids=["m1"], model="fake",
    )  # fmt: skip


def _orders(orders: Orders | Mapping[str, Any] | None) -> Orders | None:
    if orders is None or isinstance(orders, Orders):
        return orders
    if unknown := orders.keys() - _ORDERS.keys():
        raise InvalidArgument("orders", f"has no {', '.join(unknown)}; there are {', '.join(_ORDERS)}")
    fields = _ORDERS | dict(orders)
    fields["money"] = {currency: _MONEY | dict(sums) for currency, sums in fields["money"].items()}
    try:
        return msgspec.convert(fields, Orders)
    except msgspec.ValidationError as error:
        raise InvalidArgument("orders", str(error)) from None


def _explained(label: LabelStrength) -> ExplainedLabel:
    weight = -math.log1p(-min(label.strength, 1 - 2**-53))  # a strength of 1 would weigh without end
    contributions = [
        Contribution(source, weight / len(label.sources), weight / len(label.sources), label.evidence,
                     label.last_seen, label.model, label.event_ids)
        for source in label.sources
    ]  # fmt: skip
    return ExplainedLabel(label.facet, label.label, label.strength, label.freshness, HALF_LIFE_MS, contributions)
