"""From embeddings to probabilities: one head per facet, either a pack's phrases with a fitted calibration or
weights that the trainer learned. Both are rows of weights, so both score through the same lines.

A folder with trained heads has, beside the encoder's files,

    heads.json          [facet, ...] in `model.taxonomy.Facet`'s fields, without phrases
    heads.safetensors   "center" [dim], and per facet "NAME.weight" [rows, dim] and "NAME.bias" [rows];
                        one row a label, and a last one for "none of these" when the facet has `background`
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model.errors import ModelCorrupt, PackError
from model.taxonomy import PACKS, Facet, Pack

Array = NDArray[np.float32]

CENTER = PACKS / "center.npy"
# For facets without a calibration of their own: about what the shipped facets' fits have in common.
DEFAULT_SLOPE = 25.0
DEFAULT_OFFSET = 0.4
DEFAULT_SOFTNESS = 0.1


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Turns similarities s of a facet's labels into logits:

        slope x s + bias of the label - competition x log of the sum over labels of e^(slope x s)

    `softness` joins a label's phrases: towards 0 their maximum counts, from 1 on their mean. `competition` (multi
    facets) lies between labels that know nothing of each other (0) and softmax (1). `background` is the logit of
    "none of these". `phrases` is the digest of what it was fitted on: other phrases need another fit.
    """

    slope: float
    softness: float
    bias: dict[str, float]
    phrases: str
    competition: float = 0.0
    background: float | None = None


class CalibrationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    encoder: str
    facets: dict[str, Calibration]


@dataclass(frozen=True)
class Head:
    """`weight` [rows, dim] on features; `rows_of[i]` rows belong to output i: the labels, then the background."""

    facet: Facet
    weight: Array
    rows_of: tuple[int, ...]
    bias: Array
    slope: float = 1.0
    softness: float = 1.0
    competition: float = 0.0

    def similarities(self, features: Array) -> Array:
        """float32 [n, outputs]: each output's rows joined, softness x log of the mean e^(product / softness)."""
        products: Array = features @ self.weight.T
        if len(products.T) == len(self.rows_of):
            return products  # one row each
        starts = np.cumsum((0, *self.rows_of[:-1]))
        sums = np.add.reduceat(np.exp(products / self.softness), starts, axis=1)
        soft: Array = (self.softness * np.log(sums / np.array(self.rows_of))).astype(np.float32)
        return soft

    def probabilities(self, features: Array) -> Array:
        """float32 [n, labels]. A single facet's rows add up to 1, less what "none of these" has."""
        scaled = self.slope * self.similarities(features)
        logits = scaled + self.bias
        if self.facet.kind == "multi":
            if self.competition:
                logits -= self.competition * np.logaddexp.reduce(scaled, axis=1, keepdims=True)
            return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Array = odds / odds.sum(axis=1, keepdims=True)
        return shares[:, : len(self.facet.labels)]


def features(embeddings: Array, center: Array) -> Array:
    """Embeddings less the mean of a mixed corpus, L2-normalised again: E5's lie in a narrow cone, whose axis
    says nothing about a text (Mu and Viswanath 2018, "All-but-the-Top")."""
    centred = embeddings - center
    unit: Array = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit


def phrases_digest(facet: Facet) -> str:
    content = msgspec.json.encode([facet.kind, facet.background, facet.labels, facet.phrases])
    return hashlib.sha256(content).hexdigest()[:16]


def phrase_head(facet: Facet, embed: Callable[[Sequence[str]], Array], center: Array,
                calibration: Calibration | None) -> Head:  # fmt: skip
    """A head whose rows are the embedded phrases of the pack. Without calibration, defaults: ranks hold, the
    probabilities are rough."""
    rows = features(embed([phrase for phrases in facet.phrases for phrase in phrases]), center)
    counts = tuple(len(phrases) for phrases in facet.phrases)
    if calibration is None:
        offset = -DEFAULT_SLOPE * DEFAULT_OFFSET
        calibration = Calibration(
            slope=DEFAULT_SLOPE,
            softness=DEFAULT_SOFTNESS,
            bias=dict.fromkeys(facet.labels, offset if facet.kind == "multi" else 0.0),
            background=-offset if facet.background else None,
            phrases="",
        )
    bias = [calibration.bias[label] for label in facet.labels]
    if facet.background:  # a row of zeros: a constant logit
        rows = np.vstack([rows, np.zeros_like(rows[:1])])
        counts += (1,)
        bias.append(calibration.background or 0.0)
    return Head(
        facet,
        rows,
        counts,
        np.array(bias, np.float32),
        calibration.slope,
        calibration.softness,
        calibration.competition,
    )


def calibration_path(pack: Pack) -> Path:
    return pack.path.with_suffix(".calibration.json")


def read_calibrations(pack: Pack, encoder: str) -> dict[str, Calibration]:
    """Of those facets of the pack whose calibration was fitted on this encoder and on the phrases in force.

    Raises:
        PackError: the file is there but not what the trainer writes.
    """
    path = calibration_path(pack)
    if not path.is_file():
        return {}
    try:
        file = msgspec.json.decode(path.read_bytes(), type=CalibrationFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise PackError(
            f"{path} is not a calibration: {error}; fit it again with `python -m trainer.calibrate`"
        ) from error
    if file.encoder != encoder:
        return {}
    return {
        facet.name: file.facets[facet.name]
        for facet in pack.facets
        if facet.name in file.facets and file.facets[facet.name].phrases == phrases_digest(facet)
    }


def shipped_center(dim: int) -> Array:
    """The mean embedding of the mixed corpus that the calibrations were fitted with; zeros for another dimension."""
    center: Array = np.load(CENTER, allow_pickle=False)
    return center if center.shape == (dim,) else np.zeros(dim, np.float32)


def write_heads(folder: Path, heads: Sequence[Head], center: Array) -> None:
    """Keep trained heads (one row an output) beside an encoder's files. Writes the two files named above."""
    tensors = {"center": np.ascontiguousarray(center)}
    for head in heads:
        tensors[f"{head.facet.name}.weight"] = np.ascontiguousarray(head.slope * head.weight)
        tensors[f"{head.facet.name}.bias"] = head.bias
    save_file(tensors, folder / "heads.safetensors")
    facets = [msgspec.structs.replace(head.facet, phrases=()) for head in heads]
    (folder / "heads.json").write_bytes(msgspec.json.format(msgspec.json.encode(facets), indent=1))


def read_heads(folder: Path, dim: int) -> tuple[list[Head], Array] | None:
    """The trained heads of a folder and the center they were trained with; None where it has none.

    Raises:
        ModelCorrupt: a file can't be read, or a facet's weights don't fit its labels or the encoder.
    """
    listing = folder / "heads.json"
    if not listing.is_file():
        return None
    try:
        facets = msgspec.json.decode(listing.read_bytes(), type=list[Facet])
        tensors = load_file(folder / "heads.safetensors")
    except Exception as error:  # safetensors raises its own class, and OSError
        raise ModelCorrupt(f"{listing} or heads.safetensors can't be read: {error}") from error
    heads = []
    for facet in facets:
        outputs = len(facet.labels) + facet.background
        weight, bias = tensors.get(f"{facet.name}.weight"), tensors.get(f"{facet.name}.bias")
        if weight is None or bias is None or weight.shape != (outputs, dim) or bias.shape != (outputs,):
            raise ModelCorrupt(
                f"{folder / 'heads.safetensors'}: facet {facet.name!r} of heads.json needs weight [{outputs}, {dim}] "
                f"and bias [{outputs}], found {None if weight is None else weight.shape} and "
                f"{None if bias is None else bias.shape}"
            )
        heads.append(Head(facet, weight, (1,) * outputs, bias))
    center = tensors.get("center")
    if center is None or center.shape != (dim,):
        raise ModelCorrupt(f"{folder / 'heads.safetensors'} has no center of {dim} numbers")
    return heads, center
