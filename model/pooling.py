"""From the states of a text's tokens to one vector, as the model was trained to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from model.errors import ModelCorrupt, ModelUnavailable

Pooling = Literal["mean", "cls", "last", "max"]

# sentence-transformers' names: the newer single field, and the older one flag a mode
_MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}


def read_pooling(folder: Path, default: Pooling) -> Pooling:
    """The pooling of sentence-transformers' modules where the folder has them, else `default`.

    Raises:
        ModelUnavailable: the modules do more than pool and normalise, or pool in a way of their own.
        ModelCorrupt: a file can't be read.
    """
    modules = _json(folder / "modules.json") or []
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ModelUnavailable(
            f"{folder / 'modules.json'}: module {unknown[0]!r} is not supported; supported are Transformer, Pooling "
            f"and Normalize"
        )
    place = next((module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"),
                 "1_Pooling")  # fmt: skip
    config = _json(folder / place / "config.json")
    if config is None:
        return default
    asked = [str(config["pooling_mode"])] if "pooling_mode" in config else [
        flag for flag, on in config.items() if on is True and flag.startswith("pooling_mode_")
    ]  # fmt: skip
    known = _MODES | _FLAGS
    if len(asked) != 1 or asked[0] not in known:
        raise ModelUnavailable(
            f"{folder / place / 'config.json'}: pooling {' and '.join(asked) or 'none'} is not supported; supported "
            f"is one of {', '.join(_MODES)}"
        )
    return known[asked[0]]


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(length, texts) of neighbours that are equally long."""
    return ((length, sum(1 for _ in same)) for length, same in groupby(lengths))


def pool(states: torch.Tensor, lengths: Sequence[int], pooling: Pooling) -> torch.Tensor:
    """One vector a text from its tokens' states, texts end to end: [tokens, dim] to float32 [texts, dim]."""
    if pooling in ("cls", "last"):
        sizes = torch.tensor(lengths, device=states.device)
        ends = sizes.cumsum(0)
        return states[ends - 1 if pooling == "last" else ends - sizes].float()
    groups = list(runs(lengths))
    blocks = states.split_with_sizes([length * texts for length, texts in groups])
    shaped = [block.view(texts, length, -1).float() for block, (length, texts) in zip(blocks, groups, strict=True)]
    return torch.cat([block.mean(1) if pooling == "mean" else block.amax(1) for block in shaped])


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{file} can't be read: {error}") from error
