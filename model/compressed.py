"""Reading what `model.compress` wrote: a folder whose layers run in 8 bits or in ONNX Runtime.

Beside an encoder's usual files, which stay as they were, such a folder has

    compression.json    {"form": "int8" | "onnx" | null, "int8": ["LAYER.PART", ...], "quality": {...}}
    packed.onnx         of form "onnx" only: `model.onnx_export.packed_graph`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model import int8, onnx_export, packed
from model.errors import ModelCorrupt

FILE = "compression.json"
FILES = (FILE, onnx_export.PACKED_FILE)
FORMS = (None, "int8", "onnx")

Hidden = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def read(folder: Path) -> dict[str, Any]:
    """What compression.json says, {} without one.

    Raises:
        ModelCorrupt: the file is not one that `limner models compress` writes.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if found["form"] not in FORMS or not isinstance(found["int8"], list):
            raise ValueError(f"form {found['form']!r} is none of {FORMS}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorrupt(f"{file} can't be read ({error!r}): write the folder again with `limner models compress`"
                           ) from error  # fmt: skip
    return found


def identity(folder: Path) -> bytes:
    """What of a folder's compression changes its answers; empty where nothing does."""
    found = read(folder)
    return json.dumps([found["form"], found["int8"]]).encode() if found.get("form") else b""


def hidden(folder: Path, weights: packed.Weights) -> Hidden | None:
    """`packed.hidden` in the folder's form; None where it has none, and off the CPU, where the plain weights run.
    `weights` on the CPU are float32.

    Raises:
        ModelUnavailable: this machine has not what the form needs.
        ModelCorrupt: a file of the folder can't be read.
    """
    found = read(folder) if weights.words.device.type == "cpu" else {}
    if found.get("form") == "int8":
        layers = int8.with_int8(weights, frozenset(found["int8"]))
        return partial(packed.hidden, layers, kernels=int8.KERNELS)
    if found.get("form") == "onnx":
        session = onnx_export.session(folder / onnx_export.PACKED_FILE, torch.get_num_threads())
        return partial(onnx_export.packed_hidden, weights, session)
    return None
