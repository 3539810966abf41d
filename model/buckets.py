"""Windows of texts in buckets: passes of a few fixed shapes, whatever the texts, as a captured graph needs them.

A window's texts lie end to end in the smallest bucket that holds them; what is left of it is computed and thrown away.
Attention and pooling take the texts' starts as data. Nothing here knows a device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model import packed
from model.errors import EngineFailed
from model.pooling import Pooling
from model.tokens import Ids

log = logging.getLogger(__name__)

# Attention starts a block for each row that a bucket may hold. Texts of fewer tokens than this on average, frame and
# prefix included, leave a part of the bucket empty instead.
TOKENS_PER_ROW = 8

Buffer = TypeVar("Buffer", torch.Tensor, NDArray[np.int32])
AttendWithin = Callable[[torch.Tensor], packed.Attend]  # by the rows' starts, int32 [rows + 1]


@dataclass(frozen=True, order=True)
class Bucket:
    """Shapes of a pass: so many tokens in at most so many rows, in one int32 buffer of `size`."""

    tokens: int

    @property
    def rows(self) -> int:
        return self.tokens // TOKENS_PER_ROW

    @property
    def size(self) -> int:
        return 2 * self.tokens + self.rows + 1

    def parts(self, buffer: Buffer) -> tuple[Buffer, Buffer, Buffer]:
        """Of a buffer: token ids [tokens], their places in their rows [tokens], where each row starts [rows + 1]."""
        return buffer[: self.tokens], buffer[self.tokens : 2 * self.tokens], buffer[2 * self.tokens : self.size]


# The smallest is where a GPU's pass stops getting faster, the largest where it is full.
BUCKETS = tuple(Bucket(tokens) for tokens in (1024, 2048, 4096, 8192))


def bucket_of(tokens: int, rows: int) -> Bucket:
    """The smallest that holds them."""
    return next(bucket for bucket in BUCKETS if tokens <= bucket.tokens and rows <= bucket.rows)


def fill(buffer: Ids, bucket: Bucket, ids: Ids, lengths: Ids) -> None:
    """Lay out rows of token ids. Rows that are not there are empty ones behind the last."""
    token_ids, places, starts = bucket.parts(buffer)
    ends = np.cumsum(lengths, dtype=np.int32)
    token_ids[: len(ids)], token_ids[len(ids) :] = ids, 0
    places[: len(ids)] = np.arange(len(ids), dtype=np.int32) - np.repeat(ends - lengths, lengths)
    places[len(ids) :] = 0
    starts[0], starts[1 : len(ends) + 1], starts[len(ends) + 1 :] = 0, ends, len(ids)


def forward(weights: packed.Weights, pooling: Pooling, bucket: Bucket, buffer: torch.Tensor,
            attend_within: AttendWithin) -> torch.Tensor:  # fmt: skip
    """L2-normalised embeddings, float32 [rows of the bucket, dim]; those of empty rows mean nothing.

    Nothing here depends on what the buffer holds, as a captured graph needs.
    """
    ids, places, starts = bucket.parts(buffer)
    x = packed.embed(weights, F.embedding(ids, weights.words), places)
    states = packed.transform(weights, x, attend_within(starts), packed.Kernels(linear_gelu=_linear_gelu))
    return F.normalize(_pooled(states, starts, pooling), dim=1)


def _linear_gelu(x: torch.Tensor, weights: packed.Pair) -> torch.Tensor:
    """One kernel instead of two that read and write the widest activation. On CUDA it is GELU's tanh form, at most
    0.0005 off: below bfloat16's rounding."""
    return torch._addmm_activation(weights[1], x, weights[0].T, use_gelu=True)


def _pooled(states: torch.Tensor, starts: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """`model.pooling.pool` by starts: float32 [rows, dim]."""
    if pooling in ("mean", "max"):
        # unsafe: it does not look at the starts, which would have to wait for the device
        return torch.segment_reduce(states.float(), pooling, offsets=starts, axis=0, unsafe=True)
    places = starts[1:] - 1 if pooling == "last" else starts[:-1]
    return states[places.clamp(0, len(states) - 1).long()].float()


def each_window(lengths: Ids, limit: Bucket, submit: Callable[[slice], None],
                release: Callable[[Bucket], None]) -> Bucket:  # fmt: skip
    """Submit rows of these lengths in windows within `limit`, in order. Where that runs out of memory, nothing of the
    window is done: release what larger buckets hold, and go on with buckets of half the size.

    Returns the limit that held, which is the one to begin with next time.

    Raises:
        EngineFailed: the smallest bucket does not fit.
    """
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        room = limit.tokens + (ends[start - 1] if start else 0)
        end = min(int(np.searchsorted(ends, room, "right")), start + limit.rows)
        try:
            submit(slice(start, end))
        except torch.OutOfMemoryError as error:
            smaller = [bucket for bucket in BUCKETS if bucket < limit]
            if not smaller:
                raise EngineFailed(
                    f"the device has no memory for {limit.tokens} tokens of text: give it to this model alone, or "
                    f'run it with device "cpu"'
                ) from error
            limit = smaller[-1]
            log.warning("out of device memory: windows hold %d tokens from now on", limit.tokens)
            release(limit)
        else:
            start = end
    return limit
