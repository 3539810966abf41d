"""How alike two encoders answer: the share of texts whose best label stays, and the cosine of their embeddings."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.corpora import Corpus

Embeddings = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Embeddings]

# Facets of both come up in chats of a shop and of a bank.
PACKS = ("ecommerce", "finance")
# Texts that stand for labels where neither packs nor a label column do.
_STAND_INS = 32


@dataclass(frozen=True)
class Task:
    """`best` gives the index of each text's best label; `corpus` is the only one it is asked of, None for all."""

    name: str
    corpus: str | None
    best: Callable[[Embeddings], NDArray[np.intp]]


def tasks(
    corpora: Sequence[Corpus], reference: Mapping[str, Embeddings], embed: Embed, folder: Path | None
) -> list[Task]:
    """What the texts are labelled by, each with weights fixed by the reference's embeddings, as a trained head's are:

    every facet of the packs and of the folder's trained heads (where msgspec and PyYAML are installed), and of a
    corpus with a label column its label names as they stand, mean-centred (of 77 labels the best two are often near
    each other: the strictest of these). A corpus without any of them is labelled by 32 of its own texts.

    Args:
        reference: embeddings by corpus.
        embed: the reference encoder.
        folder: of the model; None for one that knows no words, to whom all phrases of a pack are the same.
    """
    has_packs = all(map(importlib.util.find_spec, ("msgspec", "yaml")))
    facets = _facets(embed, folder) if folder is not None and has_packs else []
    found = list(facets)
    for corpus in corpora:
        if corpus.labels or not facets:
            names = corpus.labels or corpus.texts[:: max(1, len(corpus.texts) // _STAND_INS)][:_STAND_INS]
            found.append(_by_names(corpus.name, reference[corpus.name].mean(axis=0), embed(names)))
    return found


def _by_names(corpus: str, center: Embeddings, names: Embeddings) -> Task:
    rows = _unit(names - names.mean(axis=0))
    return Task(f"{corpus}_labels", corpus, lambda rows_of: np.argmax(_unit(rows_of - center) @ rows.T, axis=1))


def _facets(embed: Embed, folder: Path) -> list[Task]:
    from model.files import calibrated_checksum
    from model.heads import features, phrase_head, read_calibrations, read_heads, shipped_center
    from model.taxonomy import load_packs

    dim = embed(["a"]).shape[1]
    trained, center = read_heads(folder, dim) or ([], shipped_center(dim))
    heads = {head.facet.name: head for head in trained}
    for pack in load_packs(PACKS):
        calibrations = read_calibrations(pack, calibrated_checksum(folder))
        for facet in pack.facets:
            if facet.name not in heads:
                heads[facet.name] = phrase_head(facet, embed, center, calibrations.get(facet.name))

    def task(name: str) -> Task:
        head = heads[name]
        return Task(name, None, lambda rows: np.argmax(head.probabilities(features(rows, center)), axis=1))

    return [task(name) for name in heads]


def compare(
    asked: Sequence[Task], reference: Mapping[str, Embeddings], found: Mapping[str, Embeddings]
) -> dict[str, Any]:
    """Of embeddings of the same texts by corpus: `agreement`, the lowest share of texts with the same best label over
    tasks and corpora; `agreement_by` {task: {corpus: share}}; `cosine_min` and `cosine_mean`."""
    shares: dict[str, dict[str, float]] = {}
    for task in asked:
        for corpus, rows in found.items():
            if task.corpus in (None, corpus):
                same = task.best(rows) == task.best(reference[corpus])
                shares.setdefault(task.name, {})[corpus] = round(float(same.mean()), 5)
    cosines = np.concatenate(
        [(rows * reference[corpus]).sum(axis=1, dtype=np.float64) for corpus, rows in found.items()]
    )
    return {
        "agreement": min(share for by_corpus in shares.values() for share in by_corpus.values()),
        "cosine_min": round(float(cosines.min()), 6),
        "cosine_mean": round(float(cosines.mean()), 6),
        "agreement_by": shares,
    }


def _unit(rows: Embeddings) -> Embeddings:
    unit: Embeddings = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
