"""BERT's family on a CUDA device: each bucket's pass is one captured graph, windows go through a ring of buffers.

A pass of a small encoder is hundreds of kernels of some microseconds each, which Python starts more slowly than the
device ends them; a CUDA graph starts them all at once. Attention is FlashAttention-2's over texts of any lengths (Dao
2023), which needs no padding. While the device computes a window, the next is tokenized and copied in and the one
before is copied out, each on a stream of its own; the host waits once a window.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model import packed
from model.buckets import BUCKETS, TOKENS_PER_ROW, Bucket, bucket_of, each_window, fill, forward
from model.encoder import Embeddings, Encoder, joined
from model.errors import EngineFailed
from model.pooling import Pooling
from model.tokens import MAX_TOKENS, Ids, LongTexts, Tokens

# Windows on their way at once: one is computed, one copied in, one copied out.
SLOTS = 3
# Texts tokenized at once, while the device computes those before: about ten windows of the largest bucket.
TEXTS_AT_ONCE = 4096
# FlashAttention-2 needs it, and bfloat16: the Ampere generation.
_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Pass:
    """A bucket's pass: `replay` computes `found` [rows, dim] of what `buffer` [bucket's size] holds."""

    buffer: torch.Tensor
    found: torch.Tensor
    replay: Callable[[], None]


class Slot:
    """One window's way: `given` and `found` pinned on the host, the same on the device, and what marks each leg's
    end. `into` is where its embeddings go once they are there; None: it is free."""

    def __init__(self, dim: int, device: torch.device) -> None:
        size, rows = BUCKETS[-1].size, BUCKETS[-1].rows
        self.given = torch.empty(size, dtype=torch.int32, pin_memory=True)
        self.found = torch.empty((rows, dim), pin_memory=True)
        self.given_there = torch.empty(size, dtype=torch.int32, device=device)
        self.found_there = torch.empty((rows, dim), device=device)
        self.copied_in, self.computed, self.copied_out = (torch.cuda.Event() for _ in range(3))  # type: ignore[no-untyped-call]
        self.into: Embeddings | None = None

    def collect(self) -> None:
        """Wait for the window, if there is one: the only wait there is for it."""
        if self.into is not None:
            self.copied_out.synchronize()
            self.into[:] = self.found[: len(self.into)].numpy()
            self.into = None


class Windows:
    """A device's graphs, ring and streams. `start` comes inside `running`, at whose end all answers are there."""

    def __init__(self, weights: packed.Weights, pooling: Pooling, longest: int, device: torch.device) -> None:
        self._weights = weights
        self._pooling = pooling
        self._longest = longest  # of any row
        self._device = device
        self._lock = threading.Lock()
        self._slots: list[Slot] = []
        self._limit = BUCKETS[-1]
        self._passes: dict[Bucket, Pass] = {}
        with self.running():
            self._in, self._compute, self._out = (torch.cuda.Stream() for _ in range(3))  # type: ignore[no-untyped-call]
            self._memory = torch.cuda.graph_pool_handle()  # one for all: they never run at the same time
            self._slots = [Slot(weights.dim, device) for _ in range(SLOTS)]
            self._ring = itertools.cycle(self._slots)
            for bucket in reversed(BUCKETS):  # captured now, the largest first: the others fit in what it frees
                full = Tokens(np.zeros(bucket.tokens, np.int32), np.full(bucket.rows, TOKENS_PER_ROW, np.int32))
                self.start(full, np.empty((bucket.rows, weights.dim), np.float32))

    @contextmanager
    def running(self) -> Iterator[None]:
        """One thread at a time.

        Raises:
            EngineFailed: the device failed; whatever it was, later work of this process fails too.
        """
        with self._lock, torch.cuda.device(self._device), torch.inference_mode():
            try:
                try:
                    yield
                finally:
                    for slot in self._slots:
                        slot.collect()
            except RuntimeError as error:
                first = str(error).partition("\n")[0]
                raise EngineFailed(f"{self._device} failed ({first}): this process must start anew") from error

    def start(self, tokens: Tokens, out: Embeddings) -> None:
        """Set off the rows of `tokens`; `out` [rows, dim] is filled by the end of `running`."""
        ends = np.concatenate([[0], np.cumsum(tokens.lengths)])

        def submit(rows: slice) -> None:
            self._submit(tokens.ids[ends[rows.start] : ends[rows.stop]], tokens.lengths[rows], out[rows])

        self._limit = each_window(tokens.lengths, self._limit, submit, self._release)

    def _submit(self, ids: Ids, lengths: Ids, into: Embeddings) -> None:
        bucket = bucket_of(len(ids), len(lengths))
        if bucket not in self._passes:
            self._passes[bucket] = self._capture(bucket)
        bucket_pass = self._passes[bucket]
        slot = next(self._ring)
        slot.collect()
        given, there = slot.given[: bucket.size], slot.given_there[: bucket.size]
        fill(given.numpy(), bucket, ids, lengths)
        with torch.cuda.stream(self._in):
            there.copy_(given, non_blocking=True)
            slot.copied_in.record(self._in)
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.copied_in)
            bucket_pass.buffer.copy_(there)
            bucket_pass.replay()
            slot.found_there[: len(into)].copy_(bucket_pass.found[: len(into)])
            slot.computed.record(self._compute)
        with torch.cuda.stream(self._out):
            self._out.wait_event(slot.computed)
            slot.found[: len(into)].copy_(slot.found_there[: len(into)], non_blocking=True)
            slot.copied_out.record(self._out)
        slot.into = into

    def _capture(self, bucket: Bucket) -> Pass:
        with torch.cuda.stream(self._compute):
            buffer = torch.zeros(bucket.size, dtype=torch.int32, device=self._device)
            compute = partial(forward, self._weights, self._pooling, bucket, buffer, self._attend_within)
            compute()  # cuBLAS chooses its kernels and takes its memory, which a capture must not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._memory, self._compute, capture_error_mode="thread_local"):
            found = compute()
        return Pass(buffer, found, graph.replay)

    def _attend_within(self, starts: torch.Tensor) -> packed.Attend:
        def attend(qkv: torch.Tensor) -> torch.Tensor:
            query, key, value = qkv.view(len(qkv), 3, self._weights.heads, -1).unbind(1)
            attended: torch.Tensor
            attended, *_ = torch.ops.aten._flash_attention_forward(
                query, key, value, starts, starts, self._longest, self._longest, 0.0, False, False
            )
            return attended.reshape(len(qkv), -1)

        return attend

    def _release(self, limit: Bucket) -> None:
        for slot in self._slots:
            slot.collect()
        self._passes = {bucket: kept for bucket, kept in self._passes.items() if bucket <= limit}
        torch.cuda.empty_cache()


class CudaEncoder(Encoder):
    """An encoder on a CUDA device. Others than BERT's family in bfloat16 on Ampere or later run as they do elsewhere.

    Its methods also raise EngineFailed: the device failed, and this process can't use it any more.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, long_texts: LongTexts = "head") -> None:
        super().__init__(folder, device, dtype, long_texts)
        self._windows: Windows | None = None
        weights = self.weights
        if (
            weights is not None
            and dtype == torch.bfloat16
            and weights.dim % (8 * weights.heads) == 0  # FlashAttention's head sizes
            and torch.cuda.get_device_capability(device) >= _CAPABILITY
        ):
            self.weights = weights = dataclasses.replace(weights, words=weights.words.to(dtype))
            self.words = weights.words
            self.hidden = partial(packed.hidden, weights)
            self.forward_from_embeddings = partial(packed.forward_from_embeddings, weights)
            self._windows = Windows(weights, self.pooling, min(MAX_TOKENS, len(weights.positions)), device)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        chunks = (self.tokenize(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE))
        return self._embed_each(chunks)

    def embed_tokens(self, tokens: Tokens) -> Embeddings:
        return self._embed_each([tokens])

    def _embed_each(self, chunks: Iterable[Tokens]) -> Embeddings:
        """Of the texts of all chunks; a chunk is asked for when the one before is on its way."""
        if self._windows is None:
            found = [super(CudaEncoder, self).embed_tokens(tokens) for tokens in chunks]
        else:
            started: list[tuple[Tokens, Embeddings]] = []
            with self._windows.running():
                for tokens in chunks:
                    started.append((tokens, np.empty((len(tokens), self.dim), np.float32)))
                    self._windows.start(*started[-1])
            found = [
                rows if tokens.rows_of is None else joined(rows, tokens.lengths, tokens.rows_of)
                for tokens, rows in started
            ]
        return np.concatenate(found) if found else np.empty((0, self.dim), np.float32)
