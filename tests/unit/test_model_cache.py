from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from model.cache import ENTRY_BYTES, BoundedCache


def cache(max_bytes: int) -> BoundedCache[str, int]:
    return BoundedCache(max_bytes, lambda key, value: len(key))


def test_least_recently_used_goes_first() -> None:
    kept = cache(2 * (ENTRY_BYTES + 1))
    kept.put_many([("a", 1), ("b", 2)])
    assert kept.get_many(["a"]) == [1]
    kept.put_many([("c", 3)])
    assert kept.get_many(["a", "b", "c"]) == [1, None, 3]
    assert (kept.hits, kept.misses, len(kept)) == (3, 1, 2)


def test_zero_bytes_keeps_nothing_and_an_entry_too_large_evicts_nothing() -> None:
    off = cache(0)
    off.put_many([("a", 1)])
    assert off.get_many(["a"]) == [None]
    small = cache(ENTRY_BYTES + 5)
    small.put_many([("a", 1), ("much too long", 2)])
    assert small.get_many(["a", "much too long"]) == [1, None]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.integers()), max_size=60), st.integers(0, 4000))
def test_bytes_are_those_of_the_entries_and_stay_below_the_bound(items: list[tuple[str, int]], bound: int) -> None:
    kept = cache(bound)
    for item in items:
        kept.put_many([item])
        assert kept.bytes <= bound
    present = [key for key in {key for key, _ in items} if kept.get_many([key])[0] is not None]
    assert len(present) == len(kept)
    assert kept.bytes == sum(len(key) + ENTRY_BYTES for key in present)


def test_threads_together_lose_no_count() -> None:
    kept = cache(50 * ENTRY_BYTES)

    def work() -> None:
        for turn in range(300):
            keys = [str((turn * 7 + n) % 90) for n in range(20)]
            found = kept.get_many(keys)
            assert all(value is None or value == int(key) for key, value in zip(keys, found, strict=True))
            kept.put_many((key, int(key)) for key in keys)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.hits + kept.misses == 4 * 300 * 20
    assert kept.bytes <= kept.max_bytes
