"""Reading a stored profile: the numbers by hand, and what holds for all of them."""

from __future__ import annotations

from decimal import Decimal
from math import exp, isclose
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.profiles.schema import PROFILE_VERSION, pack
from streaming.profiles.view import LabelStrength, Profile, ProfileUnreadable, fence
from tests.stored import profile

DAY = 86_400_000
T = 1_750_000_000_000


def stored(sources: dict[str, Any] | None = None, **more: Any) -> bytes:
    return profile("c", T, sources or {}, **more)


def source(labels: dict[str, list[Any]], facet: str = "interests", half_life: int = 10 * DAY) -> dict[str, Any]:
    return {"n": 1, "t": T, "l": {facet: [half_life, labels]}}


def only_label(raw: bytes, at: int = T) -> LabelStrength:
    (label,) = Profile.from_bytes(raw, at).labels
    return label


def test_sources_are_decayed_to_the_moment_of_reading_and_added() -> None:
    raw = stored(
        {
            "chat": source({"tea": [2.0, T - 10 * DAY, 5, "m1", ["a", "b"]]}),  # one half-life old: 1 left
            "order": source({"tea": [0.5, T - 20 * DAY, 1, "m2", ["o"]]}),  # two half-lives old: 0.125 left
        }
    )
    label = only_label(raw)
    assert isclose(label.strength, 1 - exp(-1.125), rel_tol=1e-12)
    assert (label.facet, label.label, label.evidence, label.last_seen) == ("interests", "tea", 6, T - 10 * DAY)
    assert (label.sources, label.event_ids, label.model) == (["chat", "order"], ["b", "a", "o"], "m1")


def test_the_source_of_the_newest_evidence_comes_first_and_names_the_model() -> None:
    raw = stored(
        {"chat": source({"tea": [9, T - 1, 1, "m1", ["a"]]}), "order": source({"tea": [1, T, 1, "m2", ["o"]]})}
    )
    label = only_label(raw)
    assert (label.sources, label.event_ids, label.model, label.last_seen) == (["order", "chat"], ["o", "a"], "m2", T)


def test_evidence_ahead_of_the_clock_counts_as_at_its_own_time() -> None:
    raw = stored({"chat": source({"tea": [1.0, T + 300_000, 1, "m", []]})})
    label = only_label(raw)
    assert isclose(label.strength, 1 - exp(-1), rel_tol=1e-12)
    assert label.freshness == "FRESH"


@pytest.mark.parametrize(
    ("age", "weight", "expected"),
    [
        (0, 1.0, "FRESH"),
        (10 * DAY, 1.0, "FRESH"),
        (10 * DAY + 1, 1.0, "STALE"),
        (40 * DAY, 1.0, "STALE"),  # strength 0.061
        (40 * DAY + 1, 100.0, "EXPIRED"),
        (0, 0.0512, "EXPIRED"),  # strength 0.0499
        (0, 0.0514, "FRESH"),  # strength 0.0501
    ],
)
def test_freshness_is_of_the_newest_evidence_in_half_lives(age: int, weight: float, expected: str) -> None:
    assert only_label(stored({"chat": source({"tea": [weight, T - age, 1, "m", []]})})).freshness == expected


def test_labels_stand_by_facet_and_strongest_first() -> None:
    chat = source({"b": [1, T, 1, "m", []], "a": [1, T, 1, "m", []], "z": [3, T, 1, "m", []]})
    chat["l"]["needs"] = [DAY, {"x": [0.1, T, 1, "m", []]}]
    labels = Profile.from_bytes(stored({"chat": chat}), T).labels
    assert [(label.facet, label.label) for label in labels] == [
        ("interests", "z"), ("interests", "a"), ("interests", "b"), ("needs", "x"),
    ]  # fmt: skip
    assert labels[0].event_ids == []


def test_sentiment_is_the_balance_of_weights() -> None:
    chat = source(
        {"positive": [4, T - DAY, 1, "m", []], "negative": [1, T - DAY, 1, "m", []], "neutral": [1, T, 1, "m", []]},
        "sentiment",
        DAY,
    )
    # 2 positive, 0.5 negative, 1 neutral are left
    assert Profile.from_bytes(stored({"chat": chat}), T).sentiment == pytest.approx(1.5 / 3.5)
    assert Profile.from_bytes(stored(), T).sentiment is None


def test_orders_are_sums_in_exact_money() -> None:
    orders = {
        "n": 3, "c": 1, "r": 2, "a": T - DAY, "z": T, "q": 7, "k": 4,
        "m": {"EUR": [100_001, 20_000, 5]},
        "p": {"S1": [2, 3, T, "cup"], "S2": [2, 3, T - 1, "茶"], "S3": [5, 1.5, T, "pot"]},
    }  # fmt: skip
    found = Profile.from_bytes(stored(o=orders), T).orders
    assert found is not None
    assert (found.placed, found.cancelled, found.returned, found.items, found.lines) == (3, 1, 2, 7, 4)
    assert (found.first_ts, found.last_ts) == (T - DAY, T)
    assert found.money["EUR"].spent == Decimal("10.0001")
    assert found.money["EUR"].returned == Decimal("0.0005")
    assert found.basket_value == Decimal("3.3334")  # 10.0001 / 3 = 3.33336...
    assert found.basket_items == pytest.approx(7 / 3)
    assert [product.sku for product in found.top_products] == ["S3", "S1", "S2"]
    assert '"spent":"10.0001"' in msgspec.json.encode(found).decode()


def test_orders_of_several_currencies_have_no_mean_value_and_a_return_alone_no_times() -> None:
    both = Profile.from_bytes(stored(o={"n": 2, "m": {"EUR": [1, 0, 0], "GBP": [1, 0, 0]}}), T).orders
    assert both is not None
    assert both.basket_value is None
    returned = Profile.from_bytes(stored(o={"n": 0, "c": 0, "r": 1, "q": 0, "k": 0, "m": {"EUR": [0, 0, 5]}}), T).orders
    assert returned is not None
    assert (returned.first_ts, returned.basket_items, returned.basket_value) == (None, None, None)


def test_a_newer_schema_is_refused_whatever_its_shape() -> None:
    for shape in ({"s": 3}, {"id": "c", "s": {"chat": source({})}}):
        with pytest.raises(ProfileUnreadable, match=rf"schema version {PROFILE_VERSION + 1}.*upgrade limner"):
            Profile.from_bytes(pack({"v": PROFILE_VERSION + 1, **shape}), T)


# a label's sum that ends early, within a profile that does not
CUT_SOURCE = {"n": 1, "t": T, "l": {"f": [DAY, "tea", b"\x95\x01"]}}
CUT = pack({"v": PROFILE_VERSION, "id": "c", "u": T, "f": {}, "s": {"chat": CUT_SOURCE}})
NO_LABELS = pack({"v": PROFILE_VERSION, "id": "c", "s": {"chat": {"n": 1, "t": T, "l": {"f": []}}}})
NUMBER_AS_LABEL = pack(
    {"v": PROFILE_VERSION, "id": "c", "s": {"chat": {"n": 1, "t": T, "l": {"f": [DAY, 7, pack([1, T, 1, "m", ""])]}}}}
)
NO_TEXT = stored(o={"n": 1, "p": {"S1": [2, 3, T, "cup"]}}).replace(b"cup", b"\xff\xffp")
HALF_A_PRODUCT = pack({"v": PROFILE_VERSION, "id": "c", "o": {"n": 1, "p": pack(["S1", 2])}})
NO_PRODUCTS = pack({"v": PROFILE_VERSION, "id": "c", "o": {"n": 1, "p": 7}})
NO_HALF_LIFE = stored({"chat": source({"tea": [1, T - 1, 1, "m", []]}, half_life=0)})
HALF_A_LABEL = pack(
    {"v": PROFILE_VERSION, "id": "c", "u": T, "s": {"chat": {"n": 1, "t": T, "l": {"f": [DAY, "tea"]}}}}
)
MISTYPED = stored({"chat": {"n": "x", "t": T}})


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", stored()[:-3], pack([1]), MISTYPED, CUT, NO_HALF_LIFE, HALF_A_LABEL, NO_LABELS, NUMBER_AS_LABEL,
     NO_TEXT, HALF_A_PRODUCT, NO_PRODUCTS],
)  # fmt: skip
def test_damage_is_named(raw: bytes) -> None:
    with pytest.raises(ProfileUnreadable, match="damaged"):
        Profile.from_bytes(raw, T)


def test_unknown_keys_are_passed_over_and_the_fence_is_for_tools() -> None:
    raw = stored(c={"ads": [True, 1, "tie"]}, i={"other": [False, 1, "tie"]}, later={"what": ["ever"]})
    assert Profile.from_bytes(raw, T).customer_id == "c"
    assert fence(raw) == {"t/0/e": 7}


weights = st.floats(1e-6, 1e3)
ages = st.integers(-300_000, 400 * DAY)
evidence = st.tuples(weights, ages)


def at_age(entry: tuple[float, int]) -> dict[str, Any]:
    weight, age = entry
    return source({"tea": [weight, T - age, 1, "m", ["e"]]})


@settings(deadline=None)
@given(evidence, evidence)
def test_the_order_of_sources_says_nothing(one: tuple[float, int], other: tuple[float, int]) -> None:
    forth = stored({"chat": at_age(one), "order": at_age(other)})
    back = stored({"order": at_age(other), "chat": at_age(one)})
    assert Profile.from_bytes(forth, T) == Profile.from_bytes(back, T)


@settings(deadline=None)
@given(evidence, weights, evidence)
def test_more_evidence_never_weakens(one: tuple[float, int], more: float, other: tuple[float, int]) -> None:
    alone = only_label(stored({"chat": at_age(one)})).strength
    heavier = only_label(stored({"chat": at_age((one[0] + more, one[1]))})).strength
    joined = only_label(stored({"chat": at_age(one), "order": at_age(other)})).strength
    assert 0 <= alone <= 1
    assert alone <= heavier
    assert alone <= joined


@settings(deadline=None)
@given(evidence, evidence, st.integers(0, 1000 * DAY))
def test_strength_never_grows_with_time(one: tuple[float, int], other: tuple[float, int], later: int) -> None:
    raw = stored({"chat": at_age(one), "order": at_age(other)})
    assert only_label(raw, T + later).strength <= only_label(raw, T).strength


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["positive", "negative", "neutral"]), evidence))
def test_sentiment_stays_within_its_bounds(labels: dict[str, tuple[float, int]]) -> None:
    chat = source({label: [w, T - age, 1, "m", []] for label, (w, age) in labels.items()}, "sentiment")
    sentiment = Profile.from_bytes(stored({"chat": chat} if labels else {}), T).sentiment
    assert sentiment is None if not labels else sentiment is not None and -1 <= sentiment <= 1
