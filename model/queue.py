"""Texts wait here for an engine, which takes them in windows of a bounded number of tokens.

Any number of threads `ask`, any number of engines `take`. A window holds texts of one lane (texts that are asked the
same question), and is handed out once it is full or its first text has waited `window_ms`. Lanes share the engines by
tokens (start-time fair queueing; Goyal, Vin and Cheng 1996): a few new descriptions of orders wait for one window of
chats, not for all of them, and thousands leave chats their half. What waits is bounded: `ask` blocks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from model.errors import TextRefused

# What a text costs beside its bytes: the frame of control tokens, a prefix, and the work that each text is.
FRAME_TOKENS = 4
# Per UTF-8 byte, as the base model's vocabulary has it: order descriptions 0.29, BANKING77 0.27, Chinese reviews 0.25.
# Exact counts would take the tokenizer; the encoder counts exactly when it cuts its passes.
TOKENS_PER_BYTE = 0.3
# The encoder cuts a text here (model.tokens.MAX_TOKENS).
MOST_TOKENS = 256
# A window is cut smaller than it might be, so that every idle engine gets a part, but not below this: with 8 texts
# or so a forward pass no longer pays.
LEAST_TOKENS = 128
# What may wait, in windows an engine: one that fills while another is computed, and one of each other lane.
WAITING_WINDOWS = 4

Lane = tuple[str, str]


def tokens_of(text: str) -> int:
    """About how many tokens the encoder makes of `text`."""
    return min(MOST_TOKENS, FRAME_TOKENS + round(TOKENS_PER_BYTE * len(text.encode("utf-8", "replace"))))


class Ask:
    """One caller's texts, until each has an answer or is refused."""

    def __init__(self, count: int) -> None:
        self.answers: list[Any] = [None] * count
        self.refused: list[int] = []
        self.fault: Exception | None = None
        self.settled = threading.Event()
        self._left = count
        self._lock = threading.Lock()  # several engines answer one caller

    def settle(self, place: int, answer: Any) -> None:
        with self._lock:
            self.answers[place] = answer
            self._count()

    def refuse(self, place: int) -> None:
        with self._lock:
            self.refused.append(place)
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            self.settled.set()

    def fail(self, fault: Exception) -> None:
        self.fault = fault
        self.settled.set()


class Item(NamedTuple):
    ask: Ask
    place: int  # in `ask`
    text: str
    tokens: int
    since: float  # time.monotonic()


@dataclass(frozen=True, slots=True)
class Window:
    """Texts of one lane, sorted by length. `again`: an engine has failed on it before."""

    lane: Lane
    items: Sequence[Item]
    again: bool = False

    @property
    def tokens(self) -> int:
        return sum(item.tokens for item in self.items)

    def answer(self, answers: Sequence[Any]) -> None:
        for item, answer in zip(self.items, answers, strict=True):
            item.ask.settle(item.place, answer)

    def refuse(self) -> None:
        for item in self.items:
            item.ask.refuse(item.place)

    def halves(self) -> tuple[Window, Window]:
        middle = len(self.items) // 2
        return Window(self.lane, self.items[:middle], True), Window(self.lane, self.items[middle:], True)


@dataclass(slots=True)
class _Waiting:
    items: deque[Item] = field(default_factory=deque)
    tokens: int = 0


class WindowQueue:
    """Of `engines` takers. Thread-safe. `window_tokens` bounds a window but for a single longer text."""

    def __init__(self, engines: int, window_tokens: int, window_ms: float) -> None:
        self.window_tokens = window_tokens
        self.waiting_tokens = self.windows = self.texts = self.tokens = 0
        self._wait_s = window_ms / 1000
        self._most_waiting = WAITING_WINDOWS * window_tokens * engines
        self._lanes: dict[Lane, _Waiting] = {}  # of those where something waits
        self._served: dict[Lane, int] = {}  # tokens handed out, less what a lane let pass while nothing waited in it
        self._clock = 0  # the lowest of them that still counts
        self._failed: deque[Window] = deque()
        self._idle = 0
        self._closed: Exception | None = None
        lock = threading.Lock()
        self._more = threading.Condition(lock)
        self._room = threading.Condition(lock)

    def ask(self, lane: Lane, texts: Sequence[str]) -> list[Any]:
        """The engines' answers to `texts`; blocks until all are there.

        Raises:
            TextRefused: no engine has an answer for some; `answers` holds the others', None for these.
            EngineFailed, or what `close` was given: there are no engines any more.
        """
        ask = Ask(len(texts))
        if not texts:
            return []
        costs = [tokens_of(text) for text in texts]
        with self._more:
            for place, (text, tokens) in enumerate(zip(texts, costs, strict=True)):
                while self.waiting_tokens >= self._most_waiting and not self._closed:
                    self._more.notify_all()
                    self._room.wait()
                if self._closed:
                    raise self._closed
                if lane not in self._lanes:
                    self._lanes[lane] = _Waiting()
                    self._served[lane] = max(self._clock, self._served.get(lane, 0))
                self._lanes[lane].items.append(Item(ask, place, text, tokens, time.monotonic()))
                self._lanes[lane].tokens += tokens
                self.waiting_tokens += tokens
            self._more.notify_all()
        ask.settled.wait()
        if ask.fault:
            raise ask.fault
        if ask.refused:
            raise TextRefused(sorted(ask.refused), ask.answers)
        return ask.answers

    def take(self) -> Window | None:
        """The next window; blocks until there is one. None once the queue is closed."""
        with self._more:
            self._idle += 1
            try:
                while not self._closed:
                    if self._failed:
                        return self._failed.popleft()
                    lane, wait_s = self._next()
                    if lane is not None:
                        return self._cut(lane)
                    self._more.wait(wait_s)
            finally:
                self._idle -= 1
        return None

    def put_back(self, *windows: Window) -> None:
        """Windows that an engine failed on: the next engine that is free takes them before all others."""
        with self._more:
            if self._closed:
                for window in windows:
                    _fail(window.items, self._closed)
            else:
                self._failed.extend(windows)
                self._more.notify_all()

    def close(self, fault: Exception) -> None:
        """Whoever waits, or asks from now on, gets `fault`; engines get no more windows."""
        with self._more:
            self._closed = self._closed or fault
            for waiting in self._lanes.values():
                _fail(waiting.items, self._closed)
            for window in self._failed:
                _fail(window.items, self._closed)
            self._lanes.clear()
            self._failed.clear()
            self.waiting_tokens = 0
            self._more.notify_all()
            self._room.notify_all()

    def _next(self) -> tuple[Lane | None, float | None]:
        """The lane whose turn it is of those whose window is due, or how long until the first one is."""
        now = time.monotonic()
        wait_s: dict[Lane, float] = {}
        for lane, waiting in self._lanes.items():
            full = waiting.tokens >= self.window_tokens
            wait_s[lane] = 0.0 if full else waiting.items[0].since + self._wait_s - now
        due = [lane for lane, left_s in wait_s.items() if left_s <= 0]
        if due:
            return min(due, key=self._served.__getitem__), None
        return None, min(wait_s.values(), default=None)

    def _cut(self, lane: Lane) -> Window:
        """The first texts of a lane, at most a window's and at most this engine's share of what waits."""
        waiting = self._lanes[lane]
        most = min(self.window_tokens, max(LEAST_TOKENS, -(-waiting.tokens // self._idle)))
        items = [waiting.items.popleft()]
        tokens = items[0].tokens
        while waiting.items and tokens + waiting.items[0].tokens <= most:
            items.append(waiting.items.popleft())
            tokens += items[-1].tokens
        if not waiting.items:
            del self._lanes[lane]
        waiting.tokens -= tokens
        self.waiting_tokens -= tokens
        self._clock = self._served[lane]
        self._served[lane] += tokens
        self.windows += 1
        self.texts += len(items)
        self.tokens += tokens
        self._room.notify_all()
        items.sort(key=lambda item: item.tokens)
        return Window(lane, items)


def _fail(items: Sequence[Item] | deque[Item], fault: Exception) -> None:
    for item in items:
        item.ask.fail(fault)
