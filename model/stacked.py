"""All heads of all facets at once: one matrix product for every label there is, then every facet's calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.cache import Evidence
from model.heads import Array, Head
from model.taxonomy import Source


class StackedHeads:
    """Of the facets read from `source` (of all without one), the same probabilities as each head's own, to rounding.

    `columns` gives each facet's columns of `probabilities`, the background's left out.
    """

    def __init__(self, heads: Sequence[Head], source: Source | None = None) -> None:
        counts = [len(head.facet.labels) for head in heads]
        read = [place for place, head in enumerate(heads) if source is None or source in head.facet.sources]
        # Of each label that is read: its index over the labels of all facets.
        self._index = np.concatenate([np.zeros(0, np.intp),
                                      *(np.arange(counts[place]) + sum(counts[:place]) for place in read)])  # fmt: skip
        heads = [heads[place] for place in read]
        self.columns: dict[str, slice] = {}
        if not heads:
            return
        rows_of = np.array([rows for head in heads for rows in head.rows_of], np.intp)
        outputs = np.array([len(head.rows_of) for head in heads], np.intp)
        self._weight = torch.from_numpy(np.vstack([head.weight for head in heads]).T.copy())
        self._rows_of = rows_of
        self._starts = np.cumsum(rows_of) - rows_of
        # An output of one row is its product as it is: e^(x / infinity) keeps it out of the exponentials.
        self._single_row = np.flatnonzero(rows_of == 1)
        softness = _each(heads, "softness", outputs)
        self._softness = softness
        self._row_softness = np.where(rows_of == 1, np.inf, softness).repeat(rows_of).astype(np.float32)
        self._slope = _each(heads, "slope", outputs)
        self._bias = np.concatenate([head.bias for head in heads])
        self._outputs = outputs
        self._facet_starts = np.cumsum(outputs) - outputs
        is_single = np.array([head.facet.kind == "single" for head in heads])
        # Softmax's denominator is competition with the biases in it, and nothing else to lose against.
        self._multi = (~is_single).repeat(outputs).astype(np.float32)
        self._base_bias = np.where(self._multi == 0, self._bias, 0).astype(np.float32)
        self._competition = np.where(self._multi == 0, np.float32(1), _each(heads, "competition", outputs))
        self.columns = {
            head.facet.name: slice(start, start + len(head.facet.labels))
            for head, start in zip(heads, self._facet_starts.tolist(), strict=True)
        }
        labels = [(head.facet, place) for place, head in enumerate(heads) for _ in head.facet.labels]
        self._column = np.concatenate([np.arange(part.start, part.stop) for part in self.columns.values()])
        self._facet = np.array([place for _, place in labels], np.intp)
        self._threshold = np.array([facet.threshold for facet, _ in labels], np.float32)
        self._top_k = np.array([facet.top_k for facet, _ in labels], np.intp)

    def probabilities(self, features: Array) -> Array:
        """float32 [n, columns] of features [n, dim]."""
        # Not numpy's product: its threads spin, and beside another busy process 64 texts took 33 ms instead of 0.3.
        products: Array = (torch.from_numpy(features) @ self._weight).numpy()
        similar = products
        if len(self._single_row) < len(self._rows_of):
            sums = np.add.reduceat(np.exp(products / self._row_softness), self._starts, axis=1)
            similar = self._softness * np.log(sums / self._rows_of.astype(np.float32))
            similar[:, self._single_row] = products[:, self._starts[self._single_row]]
        scaled = self._slope * similar
        base = scaled + self._base_bias
        highest = np.maximum.reduceat(base, self._facet_starts, axis=1)
        sums = np.add.reduceat(np.exp(base - highest.repeat(self._outputs, axis=1)), self._facet_starts, axis=1)
        joint = (np.log(sums) + highest).repeat(self._outputs, axis=1)
        with np.errstate(over="ignore"):  # to infinity, and its inverse to 0
            odds_against = np.exp(self._competition * joint - scaled - self._bias)
        probabilities: Array = 1 / (self._multi + odds_against)
        return probabilities

    def evidence(self, features: Array) -> list[Evidence]:
        """Of each text: (label's index over all facets, probability to 4 decimals) of those whose probability reaches
        their facet's threshold, at most `top_k` a facet, facet by facet, strongest first."""
        pairs: list[list[tuple[int, float]]] = [[] for _ in range(len(features))]
        if self.columns:
            found = self.probabilities(features)[:, self._column]
            text, label = np.nonzero(found >= self._threshold)
            probability = found[text, label]
            order = np.lexsort((label, -probability, self._facet[label], text))
            text, label, probability = text[order], label[order], probability[order]
            group = text * len(self._outputs) + self._facet[label]
            rank = np.arange(len(group)) - np.searchsorted(group, group)
            kept = rank < self._top_k[label]
            chosen = (text[kept], self._index[label[kept]], probability[kept])
            for row, index, value in zip(*(column.tolist() for column in chosen), strict=True):
                pairs[row].append((index, round(value, 4)))
        return [tuple(said) for said in pairs]


def _each(heads: Sequence[Head], name: str, outputs: NDArray[np.intp]) -> Array:
    return np.array([getattr(head, name) for head in heads], np.float32).repeat(outputs)
