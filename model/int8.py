"""Linear layers in 8-bit integers, for CPUs with AVX2 or better: activations 8 bits a token, weights 7 bits a row.

Each token has its own scale and offset (as ZeroQuant, Yao et al. 2022, has for activations): a batch shares no scale,
so no text changes another's answer, and E5's few very large channels cost their own token only. By one scale a pass,
as ONNX Runtime's and torch's dynamic quantisation have it, one of ten texts changed its best of 77 labels.

Weights have 7 bits because AVX2 adds pairs of products in 16 bits: 2 x 255 x 64 still fits, 2 x 255 x 127 does not
and would saturate without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
import torch.nn.functional as F

from model import packed
from model.errors import ModelUnavailable
from model.packed import Kernels, Pair, Weights

PARTS = ("qkv", "attention", "up", "down")
_LARGEST = 64  # of a weight: see above
_LEVELS = 255  # of an activation


def linear_names(weights: Weights) -> list[str]:
    """Every linear layer, "LAYER.PART"."""
    return [f"{index}.{part}" for index in range(len(weights.layers)) for part in PARTS]


def with_int8(weights: Weights, names: Collection[str]) -> Weights:
    """The same (float32, on the CPU) with the layers of these names in 8 bits; `KERNELS` computes them.

    Raises:
        ModelUnavailable: this torch has no 8-bit products (it was built without oneDNN).
    """
    layers = [
        dataclasses.replace(
            layer, **{part: _quantised(getattr(layer, part)) for part in PARTS if f"{index}.{part}" in names}
        )
        for index, layer in enumerate(weights.layers)
    ]
    return dataclasses.replace(weights, layers=layers)


def _quantised(pair: Pair) -> Pair:
    """(weight in oneDNN's own layout, float32 [3, out]: scale, sum of the row's weights, bias)."""
    weight, bias = pair
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST
    whole = torch.round(weight / scale[:, None]).to(torch.int8)
    try:
        stored = torch.ops.onednn.qlinear_prepack(whole, None)
    except (AttributeError, RuntimeError) as error:
        raise ModelUnavailable(
            "this torch can't multiply in 8 bits (it has no oneDNN): use the model that this one was compressed from"
        ) from error
    return stored, torch.stack([scale, whole.sum(dim=1, dtype=torch.float32) * scale, bias])


def linear(x: torch.Tensor, pair: Pair) -> torch.Tensor:
    weight, bias = pair
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    scale, sums, bias = bias
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)  # aminmax takes seven times as long
    step = ((high - low) / _LEVELS).clamp_(min=1e-12)
    # (x - low) / step, and a half because the conversion cuts off
    whole = torch.addcmul(0.5 - low / step, x, 1 / step).clamp_(max=_LEVELS).to(torch.uint8)
    products = torch.ops.onednn.qlinear_pointwise(
        whole, 1.0, 0, weight, scale, torch.zeros(len(scale), dtype=torch.int64), None, 1.0, 0, torch.float32,
        "none", [], "",
    )  # fmt: skip
    # x = step x whole + low, so x W = step x (whole W) + low x sums
    offsets = torch.cat([low, torch.ones_like(low)], dim=1)
    scaled: torch.Tensor = products.mul_(step).addmm_(offsets, torch.stack([sums, bias]))
    return scaled


def linear_gelu(x: torch.Tensor, pair: Pair) -> torch.Tensor:
    return F.gelu(linear(x, pair))


KERNELS = Kernels(linear=linear, linear_gelu=linear_gelu, attention=packed.attention)
