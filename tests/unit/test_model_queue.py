"""Windows are bounded in tokens and in waiting, shared among idle engines, and lanes take turns."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import EngineFailed, TextRefused
from model.queue import LEAST_TOKENS, MOST_TOKENS, WAITING_WINDOWS, Window, WindowQueue, tokens_of

CHAT, ORDER = ("evidence", "chat"), ("evidence", "order")
TEXT = "x" * 320  # 100 tokens
LONG_MS = 60_000.0


def echo(window: Window) -> None:
    window.answer([item.text for item in window.items])


def taken(queue: WindowQueue, within_s: float = 5.0) -> Window:
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(queue.take).result(within_s)
    assert window is not None
    return window


def waiting(queue: WindowQueue, tokens: int) -> None:
    deadline = time.monotonic() + 5
    while queue.waiting_tokens != tokens:
        assert time.monotonic() < deadline, (queue.waiting_tokens, tokens)
        time.sleep(0.001)


def test_tokens_of() -> None:
    assert tokens_of(TEXT) == 100
    assert tokens_of("") == 4
    assert tokens_of("很" * 10_000) == MOST_TOKENS
    assert tokens_of("half a pair \ud83d") > 4


def test_a_full_window_is_handed_out_at_once_and_the_rest_waits_its_time() -> None:
    queue = WindowQueue(1, window_tokens=500, window_ms=LONG_MS)
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(queue.ask, CHAT, [TEXT + str(n) for n in range(7)])
        waiting(queue, 700)
        window = taken(queue)
        assert (len(window.items), window.tokens) == (5, 500)
        with ThreadPoolExecutor(1) as engine:
            rest = engine.submit(queue.take)
            with pytest.raises(TimeoutError):
                rest.result(0.2)  # 200 tokens of 500, and a minute left
            queue.close(EngineFailed("end"))
            assert rest.result(5) is None
        with pytest.raises(EngineFailed, match="end"):
            asked.result(5)


def test_what_is_not_full_is_handed_out_after_its_time() -> None:
    queue = WindowQueue(1, window_tokens=500, window_ms=150)
    with ThreadPoolExecutor(1) as callers:
        started = time.monotonic()
        asked = callers.submit(queue.ask, CHAT, ["a", "b"])
        window = taken(queue)
        assert 0.14 <= time.monotonic() - started < 2
        echo(window)
        assert asked.result(5) == ["a", "b"]


def test_windows_are_sorted_by_length_and_answers_are_not() -> None:
    queue = WindowQueue(1, window_tokens=2000, window_ms=1)
    texts = ["y" * size for size in (300, 4, 80, 900, 40)]
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(queue.ask, CHAT, texts)
        window = taken(queue)
        assert [len(item.text) for item in window.items] == [4, 40, 80, 300, 900]
        echo(window)
        assert asked.result(5) == texts


def test_idle_engines_share_what_waits() -> None:
    queue = WindowQueue(2, window_tokens=2000, window_ms=50)
    with ThreadPoolExecutor(3) as threads:
        engines = [threads.submit(queue.take) for _ in range(2)]
        asked = threads.submit(queue.ask, CHAT, [TEXT] * 10)
        windows = [engine.result(5) for engine in engines]
        assert sorted(len(window.items) for window in windows if window) == [5, 5]
        for window in windows:
            assert window
            echo(window)
        assert asked.result(5) == [TEXT] * 10


def test_few_texts_are_not_torn_apart() -> None:
    queue = WindowQueue(2, window_tokens=2000, window_ms=20)
    few = ["z" * 40] * (LEAST_TOKENS // tokens_of("z" * 40))
    with ThreadPoolExecutor(3) as threads:
        engines = [threads.submit(queue.take) for _ in range(2)]
        asked = threads.submit(queue.ask, CHAT, few)
        assert asked.running()
        time.sleep(0.3)
        done = [engine for engine in engines if engine.done()]
        assert len(done) == 1
        window = done[0].result()
        assert window
        echo(window)
        queue.close(EngineFailed("end"))


def test_lanes_take_turns() -> None:
    """A few descriptions wait for one window of chats, however many chats were there before."""
    queue = WindowQueue(1, window_tokens=500, window_ms=0)
    with ThreadPoolExecutor(2) as callers:
        callers.submit(queue.ask, CHAT, [TEXT] * 15)
        waiting(queue, 1500)
        first = taken(queue)
        assert first.lane == CHAT
        echo(first)
        callers.submit(queue.ask, ORDER, ["new"])
        waiting(queue, 1000 + tokens_of("new"))
        windows = [taken(queue) for _ in range(3)]
        assert [window.lane for window in windows] == [ORDER, CHAT, CHAT]
        for window in windows:
            echo(window)
        queue.close(EngineFailed("end"))


def test_lanes_share_by_tokens() -> None:
    """However large the windows of one are: who asks for little at a time gets half while it asks."""
    queue = WindowQueue(1, window_tokens=800, window_ms=0)
    with ThreadPoolExecutor(2) as callers:
        callers.submit(queue.ask, ORDER, [TEXT] * 24)  # three windows
        waiting(queue, 2400)
        chats = 0
        for _ in range(10):
            left = queue.waiting_tokens
            asked = callers.submit(queue.ask, CHAT, [TEXT] * 2)
            waiting(queue, left + 200)
            while (window := taken(queue)).lane == ORDER:
                echo(window)
            echo(window)
            assert asked.result(5) == [TEXT] * 2
            chats += 200
            orders = 2400 - queue.waiting_tokens
            assert chats >= orders - 1000
        assert orders >= 1600
        while queue.waiting_tokens:
            echo(taken(queue))


def test_what_waits_is_bounded_and_callers_wait() -> None:
    queue = WindowQueue(1, window_tokens=500, window_ms=0)
    bound = WAITING_WINDOWS * 500
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(queue.ask, CHAT, [TEXT] * 100)
        waiting(queue, bound)
        second = callers.submit(queue.ask, ORDER, [TEXT] * 3)
        time.sleep(0.1)
        assert queue.waiting_tokens == bound
        most = 0
        while queue.texts < 103:
            most = max(most, queue.waiting_tokens)
            echo(taken(queue))
        assert (first.result(5), second.result(5)) == ([TEXT] * 100, [TEXT] * 3)
        assert most <= bound + 2 * MOST_TOKENS


def test_a_text_longer_than_a_window_goes_alone() -> None:
    queue = WindowQueue(1, window_tokens=200, window_ms=0)
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(queue.ask, CHAT, [TEXT * 9, "short"])
        for size in (1, 1):
            window = taken(queue)
            assert len(window.items) == size
            echo(window)
        assert len(asked.result(5)) == 2


def test_nothing_is_asked_for_nothing() -> None:
    assert WindowQueue(1, 100, 0).ask(CHAT, []) == []


def test_what_failed_comes_first_and_a_refusal_leaves_the_others_answers() -> None:
    queue = WindowQueue(1, window_tokens=2000, window_ms=1)
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(queue.ask, CHAT, ["a", "bbbbbbbb", "cccccccccccccccc"])
        window = taken(queue)
        first, second = window.halves()
        assert first.again and second.again
        queue.put_back(first, second)
        assert taken(queue) == first
        first.refuse()
        assert taken(queue) == second
        echo(second)
        with pytest.raises(TextRefused) as refused:
            asked.result(5)
    assert refused.value.refused == [0]
    assert refused.value.answers == [None, "bbbbbbbb", "cccccccccccccccc"]


def test_closing_tells_everyone() -> None:
    queue = WindowQueue(1, window_tokens=100, window_ms=LONG_MS)
    with ThreadPoolExecutor(3) as threads:
        blocked = threads.submit(queue.ask, CHAT, [TEXT] * 50)  # waits for room
        waiting(queue, WAITING_WINDOWS * 100)
        window = taken(queue)
        queue.put_back(window)
        queue.close(EngineFailed("gone"))
        with pytest.raises(EngineFailed, match="gone"):
            blocked.result(5)
    with pytest.raises(EngineFailed, match="gone"):
        queue.ask(CHAT, ["late"])
    assert queue.take() is None
    assert queue.waiting_tokens == 0


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=60), max_size=30), min_size=1, max_size=8),
    st.integers(1, 4), st.integers(20, 600), st.floats(0, 3),
)  # fmt: skip
def test_every_caller_gets_its_own_answers(
    asked: list[list[str]], engines: int, window_tokens: int, window_ms: float
) -> None:
    queue = WindowQueue(engines, window_tokens, window_ms)

    def run() -> None:
        while (window := queue.take()) is not None:
            assert len({item.ask for item in window.items}) >= 1
            assert window.tokens <= window_tokens or len(window.items) == 1
            echo(window)

    threads = [threading.Thread(target=run) for _ in range(engines)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(len(asked)) as callers:
        answers = [callers.submit(queue.ask, (CHAT, ORDER)[n % 2], texts) for n, texts in enumerate(asked)]
        assert [answer.result(20) for answer in answers] == asked
    queue.close(EngineFailed("end"))
    for thread in threads:
        thread.join(5)
    assert (queue.waiting_tokens, queue.texts) == (0, sum(map(len, asked)))
