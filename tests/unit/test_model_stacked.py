"""All heads at once say what each says alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cache import Evidence
from model.heads import Array, Head
from model.stacked import StackedHeads
from model.taxonomy import Facet

DIM = 12


def head(name: str, seed: int, rows_of: tuple[int, ...], **facet: Any) -> Head:
    random = np.random.default_rng(seed)
    background = facet.get("background", False)
    spec = {"kind": "single", "sources": ("chat",), "threshold": 0.3, "top_k": 2, "background": False} | facet
    labels = tuple(f"{name}{n}" for n in range(len(rows_of) - background))
    return Head(
        Facet(name=name, half_life_ms=1, labels=labels, **spec),
        random.normal(size=(sum(rows_of), DIM)).astype(np.float32),
        rows_of,
        random.normal(size=len(rows_of)).astype(np.float32),
        slope=float(random.uniform(0.5, 6)),
        softness=float(random.uniform(0.1, 1)),
        competition=float(random.uniform(0, 1)),
    )


HEADS = [
    head("a", 1, (2, 1, 3), background=True),
    head("b", 2, (1, 1), kind="multi", sources=("order",), top_k=1, threshold=0.2),
    head("c", 3, (4, 2), kind="multi", sources=("chat", "order")),
    head("d", 4, (1, 1, 1, 1)),
]


def some(texts: int, seed: int = 0) -> Array:
    rows = np.random.default_rng(seed).normal(size=(texts, DIM)).astype(np.float32)
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def one_by_one(heads: list[Head], features: Array, source: str) -> list[Evidence]:
    said: list[list[tuple[int, float]]] = [[] for _ in features]
    start = 0
    for each in heads:
        if source in each.facet.sources:
            for pairs, row in zip(said, each.probabilities(features), strict=True):
                best = np.argsort(-row, kind="stable")[: each.facet.top_k]
                pairs += [(start + int(n), round(float(row[n]), 4)) for n in best if row[n] >= each.facet.threshold]
        start += len(each.facet.labels)
    return [tuple(pairs) for pairs in said]


@settings(deadline=None, derandomize=True)  # a tie within rounding may rank either way
@given(st.permutations(HEADS), st.integers(1, 4), st.integers(0, 9), st.integers(0, 99))
def test_equal_to_each_head_alone(heads: list[Head], count: int, texts: int, seed: int) -> None:
    heads = heads[:count]
    features = some(texts, seed)
    stacked = StackedHeads(heads)
    found = stacked.probabilities(features)
    assert list(stacked.columns) == [each.facet.name for each in heads]
    for each in heads:
        assert found[:, stacked.columns[each.facet.name]] == pytest.approx(each.probabilities(features), abs=1e-5)
    for source in ("chat", "order"):
        said = StackedHeads(heads, source).evidence(features)
        due = one_by_one(heads, features, source)
        assert [[index for index, _ in pairs] for pairs in said] == [[index for index, _ in pairs] for pairs in due]
        assert [p for pairs in said for _, p in pairs] == pytest.approx(
            [p for pairs in due for _, p in pairs], abs=2e-4
        )


def test_equal_probabilities_come_in_the_order_of_labels() -> None:
    flat = replace(head("e", 5, (1, 1, 1), kind="multi", top_k=2), weight=np.zeros((3, DIM), np.float32),
                   bias=np.full(3, 2, np.float32), competition=0.0)  # fmt: skip
    assert [[index for index, _ in pairs] for pairs in StackedHeads([flat], "chat").evidence(some(2))] == [[0, 1]] * 2


def test_trained_weights_of_any_size_stay_finite() -> None:
    """A trained row's product may be far above what e to its power can hold."""
    for kind in ("single", "multi"):
        trained = head("t", 6, (1, 1, 1), kind=kind)
        trained = replace(trained, weight=100 * trained.weight, slope=1.0, competition=0.5)
        beside = [trained, HEADS[0]]
        with np.errstate(over="raise"):
            found = StackedHeads(beside).probabilities(some(20))
        assert np.isfinite(found).all()
        with np.errstate(over="ignore"):
            assert found[:, :3] == pytest.approx(trained.probabilities(some(20)), abs=1e-4)


def test_no_facet_reads_the_source() -> None:
    assert StackedHeads([HEADS[3]], "order").evidence(some(3)) == [(), (), ()]
