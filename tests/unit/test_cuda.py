"""The CUDA path without CUDA: layout, windows and ring on the CPU, where a plain call stands in for a graph. What needs
a device is in test_cuda_device.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import cuda, packed
from model.buckets import BUCKETS, TOKENS_PER_ROW, Bucket, bucket_of, each_window, fill, forward
from model.errors import EngineFailed
from model.pooling import Pooling, pool
from model.tokens import MAX_TOKENS, Ids, Tokens

LENGTHS = st.lists(st.integers(2, MAX_TOKENS), max_size=400).map(lambda rows: np.array(rows, np.int32))


def small_weights() -> packed.Weights:
    torch.manual_seed(5)
    dim, wide = 16, 32

    def pair(out: int, *ins: int) -> packed.Pair:
        return torch.randn(out, *ins) * 0.3, torch.randn(out) * 0.1

    layers = [
        packed.Layer(pair(3 * dim, dim), pair(dim, dim), pair(dim), pair(wide, dim), pair(dim, wide), pair(dim))
        for _ in range(2)
    ]
    return packed.Weights(torch.randn(50, dim), torch.randn(MAX_TOKENS, dim), pair(dim), layers, heads=2, eps=1e-12)


def some_tokens(lengths: Ids) -> Tokens:
    return Tokens(np.random.default_rng(1).integers(0, 50, int(lengths.sum()), dtype=np.int32), lengths)


def expected(weights: packed.Weights, tokens: Tokens, pooling: Pooling = "mean") -> torch.Tensor:
    """What `model.packed` gives."""
    lengths = tokens.lengths.tolist()
    states = packed.hidden(weights, torch.from_numpy(tokens.ids), lengths)
    return F.normalize(pool(states, lengths, pooling), dim=1)


def attend_within(starts: torch.Tensor) -> packed.Attend:
    """Attention by starts on the CPU; what lies behind the last text is left as it comes, here NaN."""
    used = int(starts[-1])
    attend = packed.attention([length for length in starts.diff().tolist() if length], heads=2)

    def within(qkv: torch.Tensor) -> torch.Tensor:
        rest = torch.full((len(qkv) - used, qkv.shape[1] // 3), torch.nan)
        return torch.cat([attend(qkv[:used]), rest]) if used else rest

    return within


# --- layout


@given(tokens=st.integers(1, 8192), rows=st.integers(1, 1024))
def test_the_smallest_bucket_that_holds_a_window(tokens: int, rows: int) -> None:
    bucket = bucket_of(tokens, rows)
    assert tokens <= bucket.tokens and rows <= bucket.rows
    assert all(tokens > smaller.tokens or rows > smaller.rows for smaller in BUCKETS if smaller < bucket)


def test_a_row_fits_the_smallest_bucket() -> None:
    assert BUCKETS[0].tokens >= MAX_TOKENS


def test_layout() -> None:
    bucket = BUCKETS[0]
    buffer = np.full(bucket.size, -7, np.int32)
    fill(buffer, bucket, np.array([5, 6, 7, 8, 9], np.int32), np.array([3, 2], np.int32))
    ids, places, starts = bucket.parts(buffer)
    assert ids.tolist() == [5, 6, 7, 8, 9] + [0] * (bucket.tokens - 5)
    assert places.tolist() == [0, 1, 2, 0, 1] + [0] * (bucket.tokens - 5)
    assert starts.tolist() == [0, 3] + [5] * (bucket.rows - 1)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_bucket_gives_the_answers_of_packed(pooling: Pooling, rows: int) -> None:
    """Whatever is left in the buffer, and with NaN behind the texts."""
    weights = small_weights()
    tokens = some_tokens(np.random.default_rng(2).integers(2, 25, rows).astype(np.int32))
    bucket = bucket_of(len(tokens.ids), rows)
    buffer = np.full(bucket.size, 49, np.int32)
    fill(buffer, bucket, tokens.ids, tokens.lengths)
    found = forward(weights, pooling, bucket, torch.from_numpy(buffer), attend_within)
    assert found.shape == (bucket.rows, weights.dim)
    torch.testing.assert_close(found[:rows], expected(weights, tokens, pooling), atol=2e-6, rtol=0)


def test_a_full_bucket() -> None:
    """No place is left behind the last row, which "cls" of an absent row would point at."""
    bucket = BUCKETS[0]
    tokens = some_tokens(np.full(4, bucket.tokens // 4, np.int32))
    buffer = np.zeros(bucket.size, np.int32)
    fill(buffer, bucket, tokens.ids, tokens.lengths)
    found = forward(small_weights(), "cls", bucket, torch.from_numpy(buffer), attend_within)
    torch.testing.assert_close(found[:4], expected(small_weights(), tokens, "cls"), atol=2e-6, rtol=0)


# --- windows


@given(LENGTHS, st.sampled_from(BUCKETS))
def test_windows_hold_every_row_once_in_order(lengths: Ids, limit: Bucket) -> None:
    windows: list[slice] = []
    assert each_window(lengths, limit, windows.append, lambda _: None) == limit
    assert [row for window in windows for row in range(window.start, window.stop)] == list(range(len(lengths)))
    for window in windows:
        assert lengths[window].sum() <= limit.tokens and window.stop - window.start <= limit.rows
    for window, following in pairwise(windows):  # and is full
        full = window.stop - window.start == limit.rows
        assert full or lengths[window].sum() + lengths[following.start] > limit.tokens


def test_short_rows_are_bounded_by_their_number() -> None:
    windows: list[slice] = []
    each_window(np.full(300, 3, np.int32), BUCKETS[0], windows.append, lambda _: None)
    assert [window.stop for window in windows] == [BUCKETS[0].rows, 2 * BUCKETS[0].rows, 300]


@given(LENGTHS, st.sampled_from(BUCKETS[:-1]))
def test_out_of_memory_halves_and_goes_on(lengths: Ids, fits: Bucket) -> None:
    done: list[int] = []
    released: list[Bucket] = []

    def submit(window: slice) -> None:
        if lengths[window].sum() > fits.tokens:
            raise torch.OutOfMemoryError
        done.extend(range(window.start, window.stop))

    limit = each_window(lengths, BUCKETS[-1], submit, released.append)
    assert done == list(range(len(lengths)))
    assert released == list(reversed(BUCKETS[BUCKETS.index(limit) : -1]))
    assert limit == BUCKETS[-1] or lengths.sum() > fits.tokens


def test_no_memory_at_all() -> None:
    def submit(window: slice) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(EngineFailed, match=r'no memory for 1024 tokens.*device "cpu"'):
        each_window(np.full(3, 9, np.int32), BUCKETS[-1], submit, lambda _: None)


# --- the ring


class Later:
    """Stands in for a stream or an event: everything is done at once."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


class Plain(cuda.Windows):
    """Windows whose passes are plain calls."""

    fits = BUCKETS[-1]

    def _capture(self, bucket: Bucket) -> cuda.Pass:
        if bucket > self.fits:
            raise torch.OutOfMemoryError
        buffer, found = torch.zeros(bucket.size, dtype=torch.int32), torch.zeros(bucket.rows, self._weights.dim)
        return cuda.Pass(
            buffer, found, lambda: found.copy_(forward(self._weights, "mean", bucket, buffer, attend_within))
        )


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Plain]:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kind: empty(*size, **kind))
    for name in ("Event", "Stream"):
        monkeypatch.setattr(torch.cuda, name, Later)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    for name in ("graph_pool_handle", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return lambda: Plain(small_weights(), "mean", MAX_TOKENS, torch.device("cpu"))


def run(windows: cuda.Windows, *parts: Tokens) -> list[torch.Tensor]:
    outs = [np.full((len(tokens), 16), np.nan, np.float32) for tokens in parts]
    with windows.running():
        for tokens, out in zip(parts, outs, strict=True):
            windows.start(tokens, out)
    return [torch.from_numpy(out) for out in outs]


def test_answers_through_the_ring(plain: Callable[[], Plain]) -> None:
    windows = plain()
    draw = np.random.default_rng(4)
    for rows in ((0, 1, 300), (2500,), (5, 100), ()):
        # sorted, as attention on the CPU goes by runs of equal lengths
        parts = [some_tokens(np.sort(draw.integers(2, 40, count)).astype(np.int32)) for count in rows]
        for tokens, out in zip(parts, run(windows, *parts), strict=True):
            want = expected(windows._weights, tokens) if len(tokens) else torch.empty(0, 16)
            torch.testing.assert_close(out, want, atol=2e-6, rtol=0)


def test_buckets_are_captured_once_and_ahead(plain: Callable[[], Plain]) -> None:
    windows = plain()
    kept = dict(windows._passes)
    assert sorted(kept) == list(BUCKETS)
    run(windows, some_tokens(np.full(2000, 9, np.int32)))
    assert windows._passes == kept


def test_a_device_with_room_for_2k(plain: Callable[[], Plain], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "fits", BUCKETS[1])
    windows = plain()
    assert (windows._limit, sorted(windows._passes)) == (BUCKETS[1], list(BUCKETS[:2]))
    tokens = some_tokens(np.full(1000, 9, np.int32))
    (found,) = run(windows, tokens)
    torch.testing.assert_close(found, expected(windows._weights, tokens), atol=2e-6, rtol=0)


def test_memory_that_runs_out_later(plain: Callable[[], Plain]) -> None:
    """Windows that were on their way are kept, and each row is there once the smaller ones are done."""
    windows = plain()
    replay = windows._passes[BUCKETS[-1]].replay
    left = [None, None]  # it holds for two windows

    def wanting() -> None:
        if not left:
            raise torch.OutOfMemoryError
        left.pop()
        replay()

    kept = {bucket: windows._passes[bucket] for bucket in BUCKETS[:-1]}
    last = windows._passes[BUCKETS[-1]]
    windows._passes[BUCKETS[-1]] = cuda.Pass(last.buffer, last.found, wanting)
    tokens = some_tokens(np.full(5000, TOKENS_PER_ROW, np.int32))
    (found,) = run(windows, tokens)
    torch.testing.assert_close(found, expected(windows._weights, tokens), atol=2e-6, rtol=0)
    assert (windows._limit, windows._passes) == (BUCKETS[-2], kept)


def test_a_failing_device_is_an_engine_that_failed(plain: Callable[[], Plain]) -> None:
    windows = plain()

    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    first = windows._passes[BUCKETS[0]]
    windows._passes[BUCKETS[0]] = cuda.Pass(first.buffer, first.found, fail)
    with pytest.raises(EngineFailed, match=r"failed \(CUDA error: an illegal memory access was encountered\): "):
        run(windows, some_tokens(np.array([9], np.int32)))


def test_threads_take_turns(plain: Callable[[], Plain]) -> None:
    windows = plain()
    tokens = some_tokens(np.sort(np.random.default_rng(3).integers(2, 60, 300)).astype(np.int32))
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.extend(run(windows, tokens))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = expected(windows._weights, tokens)
    assert len(found) == 4
    for each in found:
        torch.testing.assert_close(each, want, atol=2e-6, rtol=0)
