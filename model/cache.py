"""Answers to texts seen before, bounded by memory: shops sell the same few thousand descriptions all day."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.taxonomy import Source

K = TypeVar("K")
V = TypeVar("V")

# What a text says: (index in the engine's `label_refs`, probability) of each label.
Evidence = tuple[tuple[int, float], ...]

# Of one entry beside its key and value: the OrderedDict's node, its share of two hash tables, the lists' slots.
ENTRY_BYTES = 200


class BoundedCache(Generic[K, V]):
    """Least recently used goes first once the entries' accounted bytes pass `max_bytes`. Thread-safe.

    `size_of(key, value)` gives the bytes of one entry's key and value. With `max_bytes` 0 nothing is kept.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[K, V], int]) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.hits = self.misses = 0
        self._size_of = size_of
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get_many(self, keys: Sequence[K]) -> list[V | None]:
        """The value of each key, None where there is none."""
        entries = self._entries
        with self._lock:
            found = [entries.get(key) for key in keys]
            for key, value in zip(keys, found, strict=True):
                if value is not None:
                    entries.move_to_end(key)
            missing = sum(value is None for value in found)
            self.misses += missing
            self.hits += len(keys) - missing
        return found

    def put_many(self, items: Iterable[tuple[K, V]]) -> None:
        with self._lock:
            for key, value in items:
                size = self._size_of(key, value) + ENTRY_BYTES
                if size > self.max_bytes or key in self._entries:
                    continue
                self._entries[key] = value
                self.bytes += size
            while self.bytes > self.max_bytes:
                key, value = self._entries.popitem(last=False)
                self.bytes -= self._size_of(key, value) + ENTRY_BYTES


def remembered(cache: BoundedCache[K, V], keys: Sequence[K], compute: Callable[[list[K]], Sequence[V]]) -> list[V]:
    """The value of each key, from the cache or from `compute`, which gets each missing key once."""
    found = cache.get_many(keys)
    missing = list(dict.fromkeys(key for key, value in zip(keys, found, strict=True) if value is None))
    if not missing:
        return found  # type: ignore[return-value]
    fresh = dict(zip(missing, compute(missing), strict=True))
    cache.put_many(fresh.items())
    return [fresh[key] if value is None else value for key, value in zip(keys, found, strict=True)]


def embedding_cache(max_bytes: int) -> BoundedCache[str, NDArray[np.float32]]:
    """A row of numbers a text."""
    return BoundedCache(max_bytes, lambda text, row: sys.getsizeof(text) + row.nbytes + sys.getsizeof(row[:0]))


def evidence_cache(max_bytes: int) -> BoundedCache[tuple[Source, str], Evidence]:
    # 120: the key's tuple and the evidence's own; 88: a pair's tuple, its float and its slot
    return BoundedCache(max_bytes, lambda key, pairs: sys.getsizeof(key[1]) + 120 + 88 * len(pairs))
