"""Encoders of BERT's family over packed tokens: no padding anywhere.

A forward pass costs what its tokens cost. The texts of a pass lie end to end in one [tokens, dim] matrix, and
attention runs per run of equally long texts, each a dense [texts, heads, length, size] block that needs no mask; so
give texts sorted by length. The states are those of `transformers`' own forward over padded texts, to rounding.

Everything here is a function of weights and tokens. `Kernels` names the parts that another device or number format
does in its own way; `embed`, `transform` and `Kernels.attention` are the seams for a caller that lays out its own
buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from model.errors import ModelCorrupt
from model.pooling import runs

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")

Pair = tuple[torch.Tensor, torch.Tensor]  # weight [out, in] and bias [out]; of a norm, both [dim]
Attend = Callable[[torch.Tensor], torch.Tensor]  # [tokens, 3 x dim] to [tokens, dim]


@dataclass(frozen=True)
class Layer:
    """Weights of one transformer layer; `qkv` is the three projections stacked, one product instead of three."""

    qkv: Pair
    attention: Pair
    attention_norm: Pair
    up: Pair
    down: Pair
    norm: Pair


@dataclass(frozen=True)
class Weights:
    """`words` [vocabulary, dim] float32; `positions` [max tokens, dim] float32, row 0 of the first token, token type
    0 added; the rest in the dtype that the layers compute in."""

    words: torch.Tensor
    positions: torch.Tensor
    norm: Pair
    layers: Sequence[Layer]
    heads: int
    eps: float

    @property
    def dim(self) -> int:
        return self.words.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.norm[0].dtype


def linear(x: torch.Tensor, weights: Pair) -> torch.Tensor:
    return F.linear(x, *weights)


def linear_gelu(x: torch.Tensor, weights: Pair) -> torch.Tensor:
    return F.gelu(F.linear(x, *weights))


def attention(lengths: Sequence[int], heads: int) -> Attend:
    """Attention within each text, of texts end to end that are `lengths` long."""
    groups = list(runs(lengths))
    sizes = [length * texts for length, texts in groups]

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        out = []
        for block, (length, texts) in zip(qkv.split_with_sizes(sizes), groups, strict=True):
            # [texts, length, 3, heads, size] -> three of [texts, heads, length, size]
            query, key, value = block.view(texts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value)
            out.append(attended.transpose(1, 2).reshape(texts * length, -1))
        return torch.cat(out)

    return attend


@dataclass(frozen=True)
class Kernels:
    """The parts of a forward pass that have other forms: `linear(x, pair)`, `linear_gelu(x, pair)`, and
    `attention(lengths, heads)`, which gives the function from stacked projections to attended values. A form whose
    weights are stored in its own way takes `Weights` whose pairs hold that."""

    linear: Callable[[torch.Tensor, Pair], torch.Tensor] = linear
    linear_gelu: Callable[[torch.Tensor, Pair], torch.Tensor] = linear_gelu
    attention: Callable[[Sequence[int], int], Attend] = attention


PLAIN = Kernels()


def is_packable(config: dict[str, Any]) -> bool:
    """Whether this module computes what a folder's config.json says."""
    return (
        config.get("model_type") in MODEL_TYPES
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
    )


def hidden(weights: Weights, ids: torch.Tensor, lengths: Sequence[int], kernels: Kernels = PLAIN) -> torch.Tensor:
    """States of the last layer, [tokens, dim], of token ids [tokens] of texts end to end."""
    return forward_from_embeddings(weights, F.embedding(ids, weights.words), lengths, kernels)


def forward_from_embeddings(
    weights: Weights, x: torch.Tensor, lengths: Sequence[int], kernels: Kernels = PLAIN
) -> torch.Tensor:
    """`hidden` from word embeddings float32 [tokens, dim]; differentiable in them."""
    places = torch.cat([torch.arange(length, device=x.device).repeat(texts) for length, texts in runs(lengths)])
    return transform(weights, embed(weights, x, places), kernels.attention(lengths, weights.heads), kernels)


def embed(weights: Weights, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What the first layer is given: word embeddings [tokens, dim] at `places` (0 for a text's first token)."""
    x = x + F.embedding(places, weights.positions)
    return F.layer_norm(x.to(weights.dtype), (weights.dim,), *weights.norm, eps=weights.eps)


def transform(weights: Weights, x: torch.Tensor, attend: Attend, kernels: Kernels = PLAIN) -> torch.Tensor:
    """The layers: [tokens, dim] to [tokens, dim]."""
    shape = (weights.dim,)
    for layer in weights.layers:
        attended = kernels.linear(attend(kernels.linear(x, layer.qkv)), layer.attention)
        x = F.layer_norm(x + attended, shape, *layer.attention_norm, eps=weights.eps)
        grown = kernels.linear(kernels.linear_gelu(x, layer.up), layer.down)
        x = F.layer_norm(x + grown, shape, *layer.norm, eps=weights.eps)
    return x


def load_weights(folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Weights:
    """The weights of a folder with `model.safetensors`.

    Raises:
        ModelCorrupt: the file can't be read, or a weight is missing.
    """
    file = folder / "model.safetensors"
    try:
        found = load_file(file, device=str(device))
    except Exception as error:  # safetensors raises its own class, and OSError, for a damaged file
        raise ModelCorrupt(f"{file} can't be read: {error}; fetch or convert the model again") from error
    named = {name.removeprefix("bert.").removeprefix("roberta."): value for name, value in found.items()}

    def pair(name: str) -> Pair:
        return named[f"{name}.weight"].to(dtype), named[f"{name}.bias"].to(dtype)

    def layer(name: str) -> Layer:
        parts = [pair(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        return Layer(
            qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
            attention=pair(f"{name}.attention.output.dense"),
            attention_norm=pair(f"{name}.attention.output.LayerNorm"),
            up=pair(f"{name}.intermediate.dense"),
            down=pair(f"{name}.output.dense"),
            norm=pair(f"{name}.output.LayerNorm"),
        )

    # RoBERTa's positions start behind the padding's id.
    first = 0 if config["model_type"] == "bert" else config.get("pad_token_id", 1) + 1
    try:
        return Weights(
            # Looked up row by row, so it stays mapped from the file: only the rows in use take memory.
            words=named["embeddings.word_embeddings.weight"],
            positions=(
                named["embeddings.position_embeddings.weight"][first:].float()
                + named["embeddings.token_type_embeddings.weight"][0].float()
            ),
            norm=pair("embeddings.LayerNorm"),
            layers=[layer(f"encoder.layer.{index}") for index in range(config["num_hidden_layers"])],
            heads=config["num_attention_heads"],
            eps=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise ModelCorrupt(f"{file} has no weight {error}: it is not the encoder that config.json says") from error
