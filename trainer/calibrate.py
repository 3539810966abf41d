"""Fit what turns similarities into probabilities for the shipped packs, and measure it on held-out halves.

    python -m trainer.calibrate --data DIR            fit, and write model/packs/*.calibration.json and center.npy
    python -m trainer.calibrate --data DIR --check    measure what ships; prints one table (--json: one object)

DIR holds the public sets of `trainer.labelled`. Maximum likelihood (Platt 1999 for "multi", vector scaling after
Guo et al. 2017 for "single"). Sets on a facet's topic have two thirds of the weight, each the same; those off
its topic the rest, by the root of their size: most texts are on topic, and a dozen greetings are not 500 messages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.e5 import ensure_base
from model.encoder import Encoder
from model.engine import Engine
from model.errors import ModelError
from model.files import default_cache_dir, weights_checksum
from model.heads import (
    CENTER,
    Calibration,
    CalibrationFile,
    Head,
    calibration_path,
    features,
    phrase_head,
    phrases_digest,
)
from model.taxonomy import Facet, load_packs
from trainer.labelled import Example, Sets, load

Array = NDArray[np.float32]

PACKS = ("ecommerce", "finance")
# Prior on a label's own bias, as if one unlucky example in PRIOR spoke against it: labels with few examples stay
# near their facet's common bias instead of at plus or minus infinity.
PRIOR = 0.002
# From the maximum of a label's phrases (departments: one object of many) to their mean (moods).
SOFTNESSES = (0.03, 0.1, 0.3, 1.0)
ECE_BINS = 15


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.calibrate", description=__doc__.split("\n")[0] if __doc__ else None
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--check", action="store_true", help="measure what ships instead of fitting")
    parser.add_argument("--json", action="store_true", help="with --check: one JSON object")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="of the base encoder")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data {options.data} is not a folder")
    try:
        if not options.check:
            fit_all(options.data, options.cache_dir)
            return 0
        engine = Engine.load("base", packs=PACKS, cache_dir=options.cache_dir)
        report = check(engine, load(options.data, "test"))
    except ModelError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report) if options.json else table(report))
    return 0


def fit_all(data: Path, cache_dir: Path) -> None:
    """Fit every shipped facet that has examples; writes the center and the calibrations beside the packs."""
    sets = load(data, "fit")
    folder = ensure_base(cache_dir)
    encoder = Encoder(folder, torch.device("cpu"), torch.float32)
    embed = _remembering(encoder.embed)
    # The mean of three kinds of text, each with the same weight: order lines, reviews, chats.
    try:
        kinds = [
            sets["interests"]["order lines"],
            sets["interests"]["Chinese reviews"],
            sets["banking_needs"]["BANKING77"],
        ]
    except KeyError as error:
        raise ModelError(
            f"fitting needs all public sets, and {error} are not in {data}: see trainer/labelled.py"
        ) from None
    center: Array = np.mean([embed([example.text for example in kind]).mean(0) for kind in kinds], 0, np.float32)
    np.save(CENTER, center)
    for pack in load_packs(PACKS):
        fitted = {
            facet.name: fit(facet, sets[facet.name], embed, center) for facet in pack.facets if facet.name in sets
        }
        file = CalibrationFile(weights_checksum(folder), fitted)
        calibration_path(pack).write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")


def _remembering(embed: Callable[[list[str]], Array]) -> Callable[[Any], Array]:
    """Facets share sets: embed each text once."""
    known: dict[str, Array] = {}

    def remembered(texts: list[str]) -> Array:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(missing, embed(missing), strict=True))
        return np.stack([known[text] for text in texts])

    return remembered


def truth(facet: Facet, examples: list[Example]) -> Array:
    """float32 [n, labels], plus a last column "none of these" where the facet has `background`."""
    holds = np.array([[label in example.labels for label in facet.labels] for example in examples], np.float32)
    if facet.background:
        holds = np.hstack([holds, 1 - holds.max(axis=1, keepdims=True)])
    return holds


def fit(facet: Facet, sets: dict[str, list[Example]], embed: Callable[[Any], Array], center: Array) -> Calibration:
    """The calibration of greatest likelihood, over all numbers of it; softness is the best of SOFTNESSES."""
    examples = [example for found in sets.values() for example in found]
    found = features(embed([example.text for example in examples]), center)
    target = torch.from_numpy(truth(facet, examples))
    weight = torch.from_numpy(weights(list(sets.values())))
    head = phrase_head(facet, embed, center, None)
    tried = [_fit(replace(head, softness=softness), found, target, weight) for softness in SOFTNESSES]
    return min(tried, key=lambda outcome: outcome[0])[1]


def _fit(head: Head, found: Array, target: torch.Tensor, weight: torch.Tensor) -> tuple[float, Calibration]:
    """The least loss at the head's softness, and the calibration that has it."""
    facet = head.facet
    multi = facet.kind == "multi"
    similar = torch.from_numpy(head.similarities(found))
    slope = torch.tensor(head.slope).log().requires_grad_()  # its logarithm, so that it stays positive
    own = torch.zeros(similar.shape[1], requires_grad=True)
    shared = torch.zeros(2, requires_grad=True)  # the common bias and the competition, of multi facets
    optimizer = torch.optim.LBFGS([slope, own, shared], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = slope.exp() * similar
        if multi:
            logits = scaled + own + shared[0] - shared[1] * scaled.logsumexp(1, keepdim=True)
            each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
        else:  # the likelihood of any one of the labels that hold
            logits = scaled + own
            each = logits.logsumexp(1) - logits.masked_fill(target == 0, -torch.inf).logsumexp(1)
        value = (weight * each).sum() + PRIOR / 2 * own.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    bias = (own + shared[0]).detach().numpy()
    return loss().item(), Calibration(
        slope=round(slope.exp().item(), 4),
        softness=head.softness,
        bias={label: round(float(value), 4) for label, value in zip(facet.labels, bias, strict=False)},
        phrases=phrases_digest(facet),
        competition=round(shared[1].item(), 4),
        background=round(float(bias[-1]), 4) if facet.background else None,
    )


def weights(sets: list[list[Example]]) -> Array:
    """float32 [examples], see the module's text; adds up to 1."""
    on_topic = [any(example.labels for example in found) for found in sets]
    sizes = [1.0 if on else len(found) ** 0.5 for found, on in zip(sets, on_topic, strict=True)]
    totals = {on: sum(size for size, other in zip(sizes, on_topic, strict=True) if other == on) for on in on_topic}
    parts = {True: 2 / 3, False: 1 / 3} if len(totals) == 2 else {True: 1.0}
    shares = [parts[on] * size / totals[on] for size, on in zip(sizes, on_topic, strict=True)]
    return np.concatenate(
        [np.full(len(found), share / len(found), np.float32) for found, share in zip(sets, shares, strict=True)]
    )


def check(engine: Engine, sets: Sets) -> dict[str, dict[str, dict[str, float]]]:
    """facet -> set -> figures on these examples:

    top1   of the texts that have a label, the share whose strongest label is one of them
    quiet  of the texts that have none, the share without a label above the threshold
    ece    expected calibration error of the strongest label, 15 bins (Guo et al. 2017); "none" is a label
           where the facet has `background`
    pairs  the same over all (text, label) pairs
    auc    area under the ROC curve over all (text, label) pairs
    """
    report: dict[str, dict[str, dict[str, float]]] = {}
    for head in engine.heads:
        facet = head.facet
        for name, examples in sets.get(facet.name, {}).items():
            scores = engine.score([example.text for example in examples])[facet.name]
            if facet.background:
                scores = np.hstack([scores, 1 - scores.sum(axis=1, keepdims=True)])
            report.setdefault(facet.name, {})[name] = _figures(facet, scores, truth(facet, examples))
    return report


def _figures(facet: Facet, scores: Array, holds: Array) -> dict[str, float]:
    labels = len(facet.labels)
    on_topic = holds[:, :labels].any(axis=1)
    rows = np.arange(len(scores))
    figures = {"n": float(len(scores))}
    if on_topic.any():
        figures["top1"] = float(holds[rows, scores[:, :labels].argmax(axis=1)][on_topic].mean())
    if not on_topic.all():
        figures["quiet"] = float((scores[~on_topic, :labels].max(axis=1) < facet.threshold).mean())
    figures["ece"] = ece(scores.max(axis=1), holds[rows, scores.argmax(axis=1)])
    figures["pairs"] = ece(scores.ravel(), holds.ravel())
    if 0 < holds.mean() < 1:
        figures["auc"] = float(roc_auc_score(holds.ravel(), scores.ravel()))
    return {name: round(value, 4) for name, value in figures.items()}


def ece(probabilities: Array, right: Array) -> float:
    """Expected calibration error: mean over ECE_BINS equal bins, by their share, of |confidence - accuracy|."""
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [
        abs(probabilities[bins == index].mean() - right[bins == index].mean()) * (bins == index).mean()
        for index in np.unique(bins)
    ]
    return float(sum(gaps))


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"{'facet':14} {'set':36} {'n':>5} {'top1':>6} {'quiet':>6} {'ece':>6} {'pairs':>6} {'auc':>6}"]
    for facet, sets in report.items():
        for name, figures in sets.items():
            numbers = [
                f"{figures[key]:6.3f}" if key in figures else " " * 6
                for key in ("top1", "quiet", "ece", "pairs", "auc")
            ]
            lines.append(f"{facet:14} {name:36} {figures['n']:5.0f} {' '.join(numbers)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
