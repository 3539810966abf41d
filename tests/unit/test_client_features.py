"""Profiles as vectors: every documented name, what is unknown, and a caller without numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from streaming.client import InvalidArgument, Profile, as_features
from streaming.client.features import DAY_MS
from streaming.client.testing import FakeProfileClient

NOW = 1_700_000_000_000


def profile(**fields: object) -> Profile:
    return FakeProfileClient().put("c1", **fields)  # type: ignore[arg-type]


def test_a_vector_has_the_names_order_and_float32() -> None:
    shopper = profile(
        labels={"interests/tea": 0.75, "interests/a/b": 0.5, "sentiment/positive": 0.25},
        sentiment=-0.5,
        events={"chat": 7, "order": 2},
        orders={
            "placed": 4, "cancelled": 1, "returned": 2, "items": 10, "lines": 6, "first_ts": 1,
            "last_ts": NOW - 3 * DAY_MS, "basket_items": 2.5, "basket_value": "12.25",
            "money": {"GBP": {"spent": "49.00", "cancelled": "5", "returned": "4.5"}},
        },
    )  # fmt: skip
    names = {
        "orders.recency": 3, "interests/tea": 0.75, "interests/a/b": 0.5, "interests/coffee": 0, "sentiment": -0.5,
        "events.chat": 7, "events.order": 2, "events.mail": 0, "orders.frequency": 4, "orders.monetary": 39.5,
        "orders.monetary.GBP": 39.5, "orders.monetary.EUR": 0, "orders.cancelled": 1, "orders.returned": 2,
        "orders.items": 10, "orders.lines": 6, "orders.basket_items": 2.5, "orders.basket_value": 12.25,
    }  # fmt: skip
    vector = as_features(shopper, list(names), at_ms=NOW)
    assert vector.dtype == np.float32
    assert vector.shape == (len(names),)
    assert vector.tolist() == list(names.values())
    assert as_features(shopper, []).shape == (0,)


def test_what_a_profile_does_not_tell_is_nan_and_what_is_none_is_zero() -> None:
    stranger = profile()
    unknown = ["sentiment", "orders.recency", "orders.basket_items", "orders.basket_value"]
    none = ["interests/tea", "orders.frequency", "orders.monetary", "orders.items", "orders.monetary.GBP"]
    assert np.isnan(as_features(stranger, unknown)).all()
    assert not as_features(stranger, none).any()
    two = {"GBP": {"spent": "1"}, "EUR": {"spent": "2"}}
    mixed = as_features(profile(orders={"placed": 2, "money": two}), ["orders.monetary", "orders.monetary.EUR"])
    assert np.isnan(mixed[0])
    assert mixed[1] == 2


@pytest.mark.parametrize(
    "name", ["tea", "orders", "orders.frequncy", "orders.monetary.gbp", "/tea", "interests/", "events."]
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name: str) -> None:
    for of in (profile(), profile(orders={"placed": 1})):
        with pytest.raises(InvalidArgument, match=r"is no feature; there are FACET/LABEL, sentiment.*orders\.recency"):
            as_features(of, ["sentiment", name])


def test_without_numpy_the_error_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from streaming.client import LimnerError, as_features\n"
        "from streaming.client.testing import FakeProfileClient\n"
        "try: as_features(FakeProfileClient().put('c1'), ['sentiment'])\n"
        "except LimnerError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "as_features needs numpy: pip install 'limner[features]'"
