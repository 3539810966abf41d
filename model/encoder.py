"""Texts to embeddings: token ids without padding, forward passes of a bounded number of tokens, one vector a text.

BERT's family runs packed (`model.packed`), whatever else transformers loads padded (`model.padded`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model import compressed, packed
from model.errors import ModelCorrupt, ModelUnavailable
from model.pooling import Pooling, pool, read_pooling
from model.tokens import MAX_TOKENS, Ids, LongTexts, TokenReader, Tokens

# Tokens of one forward pass. On a CPU one core does 76 GFLOP/s with 1,024 or 2,048 tokens, 74 with 4,096, whose
# activations (25 MB each) fall out of its cache, and 70 with 256. A GPU takes more to fill.
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 8192}

Embeddings = NDArray[np.float32]
Forward = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


class Encoder:
    """A frozen encoder, read from a folder. Safe to call from several threads.

    `reader` makes tokens of texts; `words` [vocabulary, dim] are the word embeddings; `hidden(ids, lengths)` gives the
    states [tokens, dim] of texts end to end, `forward_from_embeddings(x, lengths)` those of given word embeddings,
    differentiable in them. `weights` are those of BERT's family, None for another, which runs padded.

    Args:
        long_texts: of a text longer than a row, "head" reads its beginning, "head+tail" both ends, "windows" all of
            it, as overlapping rows whose embeddings are averaged by their tokens.

    Raises:
        ModelUnavailable: the folder lacks a file, or holds an architecture that nothing here reads.
        ModelCorrupt: a file can't be read, or a weight is missing.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, long_texts: LongTexts = "head") -> None:
        self.device = device
        self.dtype = dtype
        self.tokens_per_pass = TOKENS_PER_PASS.get(device.type, 2048)
        self.weights: packed.Weights | None = None
        self.hidden: Forward
        self.forward_from_embeddings: Forward
        config = _read_config(folder)
        default: Pooling = "mean"
        if packed.is_packable(config):
            if device.type == "cpu" and compressed.read(folder).get("form"):
                dtype = self.dtype = torch.float32  # what stands beside layers in another form
            weights = packed.load_weights(folder, config, device, dtype)
            self.weights, self.words, longest = weights, weights.words, len(weights.positions)
            self.hidden = compressed.hidden(folder, weights) or partial(packed.hidden, weights)
            self.forward_from_embeddings = partial(packed.forward_from_embeddings, weights)
        else:
            from model.padded import Padded

            model = Padded(folder, device, dtype)
            self.words, longest, default = model.words, model.max_tokens or MAX_TOKENS, model.default_pooling
            self.hidden, self.forward_from_embeddings = model.hidden, model.forward_from_embeddings
        self.dim = self.words.shape[1]
        self.pooling = read_pooling(folder, default)
        self.reader = TokenReader(folder, min(MAX_TOKENS, longest), read_prefix(folder), long_texts)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each text; see `TokenReader.read`."""
        return self.reader.read(texts)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Pooled, L2-normalised embeddings: float32 [len(texts), dim]."""
        return self.embed_tokens(self.tokenize(texts))

    def embed_tokens(self, tokens: Tokens) -> Embeddings:
        """`embed` of texts that `tokenize` has read."""
        out = np.empty((len(tokens), self.dim), np.float32)
        for rows in passes(tokens.lengths, self.tokens_per_pass, padded=self.weights is None):
            out[rows] = self._embed_rows(tokens.take(rows))
        return out if tokens.rows_of is None else joined(out, tokens.lengths, tokens.rows_of)

    @torch.inference_mode()
    def _embed_rows(self, tokens: Tokens) -> Embeddings:
        lengths = tokens.lengths.tolist()
        ids = torch.from_numpy(tokens.ids).to(self.device)
        vectors = pool(self.hidden(ids, lengths), lengths, self.pooling)
        embeddings: Embeddings = F.normalize(vectors, dim=1).cpu().numpy()
        return embeddings


def passes(lengths: Ids, limit: int, padded: bool) -> list[NDArray[np.intp]]:
    """Rows sorted by length, cut into runs of at most `limit` tokens, padding counted where there is any."""
    order = np.argsort(lengths, kind="stable")
    cut: list[NDArray[np.intp]] = []
    start = total = 0
    for place, length in enumerate(lengths[order].tolist()):
        total = (place - start + 1) * length if padded else total + length
        if total > limit and place > start:
            cut.append(order[start:place])
            start, total = place, length
    return [*cut, order[start:]] if len(order) else []


def joined(rows: Embeddings, lengths: Ids, rows_of: Ids) -> Embeddings:
    """Each text's embedding from those of its windows: their mean weighted by tokens, L2-normalised again."""
    starts = np.cumsum(rows_of) - rows_of
    sums = np.add.reduceat(rows * lengths[:, None].astype(np.float32), starts, axis=0)
    joined: Embeddings = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return joined


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise ModelUnavailable(
            f"{folder} is not a model folder: it has no config.json (it needs config.json, model.safetensors and "
            f"tokenizer.json)"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{folder / 'config.json'} can't be read: {error}") from error
    return config


def read_prefix(folder: Path) -> str:
    """What the model expects before a text: the prompt "query" of sentence-transformers' file, if any."""
    try:
        prefix: str = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))["prompts"]["query"]
    except (OSError, ValueError, KeyError):
        return ""
    return prefix
