"""Texts to embeddings: tokens packed without padding, one forward pass of BERT over each pack.

A forward pass costs what its tokens cost, so there are no padding tokens: the texts of a pack lie one
after the other in one [tokens, hidden] matrix, sorted by length, and attention runs per group of texts
of equal length, each a dense [texts, heads, length, head size] block that needs no mask. The result is
`transformers.BertModel`'s with mean pooling, to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model.errors import ModelCorrupt, ModelUnavailable

# Customers say what they want early: of the Chinese reviews 2 % and of BANKING77 none are longer, and the
# cost of attention grows with the square.
MAX_TOKENS = 256
# Tokens of one forward pass. 4,096 x 1,536 float32 (the widest activation) is 25 MB: large enough for the
# matrix products to run at full speed, small enough that a burst of long texts can't exhaust memory.
TOKENS_PER_PASS = 4096
# model_type -> position of the first token (RoBERTa's positions start behind the padding index)
_FIRST_POSITION = {"bert": 0, "roberta": 2, "xlm-roberta": 2}

Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class _Layer:
    """Weights of one transformer layer; `qkv` is the three projections stacked, one product instead of three."""

    qkv: tuple[torch.Tensor, torch.Tensor]
    attention: tuple[torch.Tensor, torch.Tensor]
    attention_norm: tuple[torch.Tensor, torch.Tensor]
    up: tuple[torch.Tensor, torch.Tensor]
    down: tuple[torch.Tensor, torch.Tensor]
    norm: tuple[torch.Tensor, torch.Tensor]


class Encoder:
    """A frozen encoder of the BERT family, read from a folder. Safe to call from several threads.

    Raises:
        ModelUnavailable: the folder lacks a file, or holds an architecture other than BERT's family.
        ModelCorrupt: a file can't be read, or a weight is missing.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        config = _read_config(folder)
        self.dim: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._eps: float = config["layer_norm_eps"]
        self._first_position = _FIRST_POSITION[config["model_type"]]
        self._max_tokens = min(MAX_TOKENS, config["max_position_embeddings"] - self._first_position)
        self._tokenizer, self._start, self._end = _read_tokenizer(folder)
        self._control = _control_tokens(self._tokenizer)
        self._prefix = _read_prefix(folder)
        self._load_weights(folder, config["num_hidden_layers"])

    def _load_weights(self, folder: Path, layers: int) -> None:
        file = folder / "model.safetensors"
        try:
            found = load_file(file, device=str(self.device))
        except Exception as error:  # safetensors raises its own class, and OSError, for a damaged file
            raise ModelCorrupt(f"{file} can't be read: {error}; fetch or convert the model again") from error
        weights = {name.removeprefix("bert.").removeprefix("roberta."): value for name, value in found.items()}

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return weights[f"{name}.weight"].to(self.dtype), weights[f"{name}.bias"].to(self.dtype)

        def layer(name: str) -> _Layer:
            parts = [pair(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
            return _Layer(
                qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
                attention=pair(f"{name}.attention.output.dense"),
                attention_norm=pair(f"{name}.attention.output.LayerNorm"),
                up=pair(f"{name}.intermediate.dense"),
                down=pair(f"{name}.output.dense"),
                norm=pair(f"{name}.output.LayerNorm"),
            )

        try:
            # Looked up row by row, so it stays mapped from the file: only the rows in use take memory.
            self._words = weights["embeddings.word_embeddings.weight"]
            self._positions = (
                weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
            )
            self._embedding_norm = pair("embeddings.LayerNorm")
            self._layers = [layer(f"encoder.layer.{index}") for index in range(layers)]
        except KeyError as error:
            raise ModelCorrupt(f"{file} has no weight {error}: it is not the encoder that config.json says") from error

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with prefix, start and end, at most MAX_TOKENS long.

        Text is text: "</s>" or "[SEP]" written by a customer becomes plain tokens, never a control token. A text
        all in capitals, as shops print their descriptions, is read in lower case: capitals fall apart into letters
        (order lines got their department right for 70 % instead of 58 %).
        """
        plain = [self._prefix + (text.lower() if text.isupper() else text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(plain, add_special_tokens=False)
        room = self._max_tokens - 2
        return [
            [self._start, *[token for token in encoding.ids[:room] if token not in self._control], self._end]
            for encoding in encoded
        ]

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Mean-pooled, L2-normalised embeddings: float32 [len(texts), dim]."""
        tokens = self.tokenize(texts)
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        out = np.empty((len(texts), self.dim), np.float32)
        for chosen in _passes(order, tokens):
            out[chosen] = self._forward([tokens[index] for index in chosen])
        return out

    @torch.inference_mode()
    def _forward(self, tokens: list[list[int]]) -> Embeddings:
        """Embeddings of texts that are sorted by length."""
        lengths = [len(ids) for ids in tokens]
        groups = [(length, lengths.count(length)) for length in sorted(set(lengths))]
        ids = torch.tensor([token for text in tokens for token in text], device=self.device)
        places = torch.cat([torch.arange(length, device=self.device).repeat(count) for length, count in groups])
        x = F.embedding(ids, self._words) + F.embedding(places + self._first_position, self._positions)
        x = self._normed(x.to(self.dtype), self._embedding_norm)
        for layer in self._layers:
            x = self._normed(x + F.linear(self._attend(F.linear(x, *layer.qkv), groups), *layer.attention),
                             layer.attention_norm)  # fmt: skip
            x = self._normed(x + F.linear(F.gelu(F.linear(x, *layer.up)), *layer.down), layer.norm)
        sizes = [length * count for length, count in groups]
        means = [
            block.float().view(count, length, self.dim).mean(1)
            for block, (length, count) in zip(x.split_with_sizes(sizes), groups, strict=True)
        ]
        embeddings: Embeddings = F.normalize(torch.cat(means), dim=1).cpu().numpy()
        return embeddings

    def _normed(self, x: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.layer_norm(x, (self.dim,), *weights, eps=self._eps)

    def _attend(self, qkv: torch.Tensor, groups: list[tuple[int, int]]) -> torch.Tensor:
        """Self-attention within each text: [tokens, 3 x dim] to [tokens, dim]."""
        out = []
        for block, (length, count) in zip(qkv.split_with_sizes([n * m for n, m in groups]), groups, strict=True):
            # [texts, length, 3, heads, size] -> three of [texts, heads, length, size]
            query, key, value = block.view(count, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value)
            out.append(attended.transpose(1, 2).reshape(-1, self.dim))
        return torch.cat(out)


def _passes(order: list[int], tokens: list[list[int]]) -> list[list[int]]:
    """Cut a list of texts into runs of at most TOKENS_PER_PASS tokens."""
    passes: list[list[int]] = []
    room = 0
    for index in order:
        if len(tokens[index]) > room:
            passes.append([])
            room = TOKENS_PER_PASS
        passes[-1].append(index)
        room -= len(tokens[index])
    return passes


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelUnavailable(
            f"{folder} is not a model folder: it has no config.json (it needs config.json, model.safetensors and "
            f"tokenizer.json)"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{folder / 'config.json'} can't be read: {error}") from error
    if config.get("model_type") not in _FIRST_POSITION or config.get("hidden_act", "gelu") != "gelu":
        raise ModelUnavailable(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r} with {config.get('hidden_act')!r} is "
            f"not supported; supported are {', '.join(_FIRST_POSITION)} with 'gelu'"
        )
    return config


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, int, int]:
    """The tokenizer, set to read control tokens in a text as text, and the ids that open and close a text."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelUnavailable(f"{folder} is not a model folder: it has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelCorrupt(f"{file} can't be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    frame = tokenizer.encode("").ids
    if len(frame) != 2:
        raise ModelCorrupt(f"{file}: an empty text has {len(frame)} tokens, expected a start and an end token")
    tokenizer.encode_special_tokens = True
    return tokenizer, frame[0], frame[1]


def _control_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that no text may hold: where control tokens are ordinary pieces of the vocabulary (SentencePiece),
    reading them as text is not enough."""
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset(id_ for id_, token in added if token.special and token.content not in ("<unk>", "[UNK]"))


def _read_prefix(folder: Path) -> str:
    """What the model expects before a text: the prompt "query" of sentence-transformers' file, if any."""
    try:
        prefix: str = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]["query"]
    except (OSError, ValueError, KeyError):
        return ""
    return prefix
