"""Smaller and faster forms of a model, each written only after its quality was measured beside the original's.

- vocabulary: only the pieces of the word embeddings that the languages use (`model.vocabulary`).
- int8: as many linear layers in 8 bits as the agreement asked for allows, those that cost least first. What a layer
  costs is measured alone, on a sample; what stays in float32 is what costs most for its work.
- onnx: the layers as ONNX Runtime's graph over packed tokens.

The weights' file of int8 and onnx is the original's: whatever else reads the folder (a GPU, `explain`, training)
finds a plain model.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import compressed, int8, onnx_export, packed
from model.corpora import Corpus
from model.e5 import ensure_base
from model.encoder import Embeddings, Encoder
from model.errors import ModelCorrupt, ModelError, ModelUnavailable
from model.files import CHECKSUMS, is_intact, record_checksums
from model.quality import Task, compare, tasks

log = logging.getLogger(__name__)

# The engine promises it against the padded float32 reference; a compressed form should not promise less unasked.
MIN_AGREEMENT = 0.995
# Texts that tell what one layer costs: the mean cosine over them ranks 48 layers alike for 64 and for 512.
_SAMPLE = 64
# Of the texts, those that the number of layers is searched with; the result is measured on all.
_SEARCH_SHARE = 4
_RATE_TEXTS, _RATE_ROUNDS = 256, 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Judge:
    """The original's answers, and how alike another's are."""

    corpora: Sequence[Corpus]
    reference: Mapping[str, Embeddings]
    tasks: Sequence[Task]

    def quality(self, encoder: Encoder, every: int = 1) -> dict[str, Any]:
        found = {corpus.name: encoder.embed(corpus.texts[::every]) for corpus in self.corpora}
        return compare(self.tasks, {name: rows[::every] for name, rows in self.reference.items()}, found)


def local_folder(name: str, cache_dir: Path) -> Path:
    """The folder of "base" (converted first, see `model.e5`), or the folder of that path.

    Raises:
        ModelUnavailable: there is no such folder.
        ModelCorrupt: one of its files is not as its checksums say.
    """
    if name == "base":
        return ensure_base(cache_dir)
    folder = Path(name)
    if not folder.is_dir():
        raise ModelUnavailable(f'there is no model folder {name!r}: use "base" or the path of a folder')
    if (folder / CHECKSUMS).is_file() and not is_intact(folder):
        raise ModelCorrupt(f"a file of {folder} is cut short or altered against its {CHECKSUMS}: copy it again")
    return folder


def compress(
    folder: Path,
    out: Path,
    corpora: Sequence[Corpus],
    *,
    languages: Sequence[str] = (),
    in_int8: bool = False,
    in_onnx: bool = False,
    min_agreement: float = MIN_AGREEMENT,
    progress: Progress = log.info,
) -> dict[str, Any]:
    """Write a compressed copy of `folder` to the new folder `out`, which `Engine.load` takes; returns its report.

    The report is kept in `compression.json`: `agreement`, `cosine_min` and the rest of `model.quality.compare` on the
    corpora's texts against the original in float32, `texts_per_s` and `texts_per_s_before` (alternating, on this
    machine), `mb` and `mb_before` on disk, `int8_layers` of `linear_layers`, `texts` by corpus.

    Raises:
        ModelError: `out` is there already, nothing or both forms are asked for, the agreement falls below
            `min_agreement`, or the form is not faster on this machine; nothing is written then.
        ModelUnavailable: the model is not of BERT's family, or this machine can't run the form.
    """
    if out.exists():
        raise ModelError(f"{out} is there already: models are written to new folders and never changed")
    if in_int8 and in_onnx:
        raise ModelError("int8 and onnx are two forms of the same layers: ask for one")
    if not (languages or in_int8 or in_onnx):
        raise ModelError("there is nothing to compress: ask for a vocabulary, int8 or onnx")
    if compressed.read(folder).get("form"):
        raise ModelError(f"{folder} is a compressed form: compress the model that it was made from")
    original = Encoder(folder, torch.device("cpu"), torch.float32)
    if original.weights is None and (in_int8 or in_onnx):
        raise ModelError(f"{folder} is not of BERT's family: int8 and onnx are for its packed layers")
    progress(f"embedding {sum(len(corpus.texts) for corpus in corpora)} texts with {folder}")
    reference = {corpus.name: original.embed(corpus.texts) for corpus in corpora}
    judge = _Judge(corpora, reference, tasks(corpora, reference, original.embed, folder))

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        fresh = Path(temporary) / out.name
        if languages:
            from model.vocabulary import trim

            trim(folder, fresh, languages)
        else:
            shutil.copytree(folder, fresh)
        form = "int8" if in_int8 else "onnx" if in_onnx else None
        result = Encoder(fresh, torch.device("cpu"), torch.float32)
        layers: list[str] = []
        if in_int8:
            layers = _choose_layers(result, judge, min_agreement, progress)
        elif in_onnx:
            assert result.weights is not None  # noqa: S101  as of the original
            (fresh / onnx_export.PACKED_FILE).write_bytes(onnx_export.packed_graph(result.weights))
        while True:
            _write(fresh, form, layers, {})
            result = Encoder(fresh, torch.device("cpu"), torch.float32)
            quality = judge.quality(result)
            progress(f"agreement {quality['agreement']:.4f}, cosine at least {quality['cosine_min']:.5f}"
                     + f", {len(layers)} layers in int8" * in_int8)  # fmt: skip
            if quality["agreement"] >= min_agreement or len(layers) <= 1:
                break
            layers = layers[: -max(1, len(layers) // 8)]
        if quality["agreement"] < min_agreement:
            raise ModelError(_refusal(quality, min_agreement, out))
        before, after = _rates([original, result], corpora)
        if form and after <= before:
            raise ModelError(f"{out} was not written: {form} makes {after:.1f} texts/s here, the original "
                             f"{before:.1f}")  # fmt: skip
        report = {
            **quality,
            "texts_per_s": round(after, 1),
            "texts_per_s_before": round(before, 1),
            "mb": _megabytes(fresh),
            "mb_before": _megabytes(folder),
            "int8_layers": len(layers),
            "linear_layers": len(int8.PARTS) * len(original.weights.layers) if original.weights else 0,
            "texts": {corpus.name: len(corpus.texts) for corpus in corpora},
            "languages": list(languages),
        }
        _write(fresh, form, layers, report)
        record_checksums(fresh)
        fresh.rename(out)
    return report


def _write(folder: Path, form: str | None, layers: Sequence[str], report: Mapping[str, Any]) -> None:
    content = {"form": form, "int8": list(layers), "quality": report}
    (folder / compressed.FILE).write_text(json.dumps(content, indent=1))


def _choose_layers(encoder: Encoder, judge: _Judge, min_agreement: float, progress: Progress) -> list[str]:
    """The longest run of layers, cheapest first, that keeps the agreement on a share of the texts; at least one."""
    weights = encoder.weights
    assert weights is not None  # noqa: S101  the caller's condition
    texts = [text for corpus in judge.corpora for text in corpus.texts[:: max(1, len(corpus.texts) // _SAMPLE)]]
    texts = texts[:: max(1, len(texts) // _SAMPLE)]
    plain = encoder.embed(texts)
    names = int8.linear_names(weights)
    progress(f"measuring what each of {len(names)} linear layers costs in 8 bits")

    def run_with(chosen: Sequence[str]) -> None:
        layers = int8.with_int8(weights, frozenset(chosen))
        encoder.hidden = partial(packed.hidden, layers, kernels=int8.KERNELS)

    def cost(name: str) -> float:
        run_with([name])
        index, _, part = name.partition(".")
        work: int = getattr(weights.layers[int(index)], part)[0].numel()
        return float(1 - (encoder.embed(texts) * plain).sum(axis=1, dtype=np.float64).mean()) / work

    order = sorted(names, key=cost)
    fits, fails = 0, len(order) + 1
    while fails - fits > 1:
        count = (fits + fails) // 2
        run_with(order[:count])
        agreement = judge.quality(encoder, every=_SEARCH_SHARE)["agreement"]
        progress(f"{count} layers in 8 bits: agreement {agreement:.4f}")
        fits, fails = (count, fails) if agreement >= min_agreement else (fits, count)
    return order[: max(1, fits)]


def _rates(encoders: Sequence[Encoder], corpora: Sequence[Corpus]) -> list[float]:
    """Texts/s of each, in turns, so that a drifting machine slows all alike."""
    texts = [text for corpus in corpora for text in corpus.texts[: _RATE_TEXTS // len(corpora)]]
    rates: list[list[float]] = [[] for _ in encoders]
    for _ in range(_RATE_ROUNDS):
        for of_encoder, encoder in zip(rates, encoders, strict=True):
            started = time.perf_counter()
            encoder.embed(texts)
            of_encoder.append(len(texts) / (time.perf_counter() - started))
    return [statistics.median(of_encoder) for of_encoder in rates]


def _refusal(quality: Mapping[str, Any], min_agreement: float, out: Path) -> str:
    worst = min(
        (share, task, corpus) for task, shares in quality["agreement_by"].items() for corpus, share in shares.items()
    )
    return (
        f"{out} was not written: its best label is the original's for {worst[0]:.2%} of {worst[2]} in {worst[1]}, "
        f"below the {min_agreement:.2%} asked for (cosine at least {quality['cosine_min']:.5f}); "
        f"--min-agreement sets another bound"
    )


def _megabytes(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
