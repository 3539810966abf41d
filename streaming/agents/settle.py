"""A batch until it is settled: `process`, `publish`, `merge`, in this order. Acknowledging is the caller's, after.

A crash anywhere repeats work and changes nothing twice. Nothing escapes but `DependencyGone`: a poison record
is found by bisection and becomes a dead letter, a store or broker that is away is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import TypeVar

from model.errors import EngineFailed
from streaming import logs, metrics
from streaming.agents.messages import dead_letter_message, delta_message, without_delta
from streaming.errors import BrokerUnavailable, LimnerError, StoreUnavailable
from streaming.events.types import DeadLetter, Position, Record, Source
from streaming.intake.async_send import AsyncSender
from streaming.pipeline import Outcome, Scorer, process
from streaming.profiles.delta import Delta
from streaming.profiles.store import MergeRefused, ProfileStore
from streaming.settings import Settings

log = logs.get("limner.worker")
T = TypeVar("T")

# Waits between attempts at a dependency that is away: soon at first, for a fail-over takes a second or two.
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class DependencyGone(LimnerError):
    """Store or broker stayed away longer than `store_patience_s`: the process should end, nothing acknowledged."""


@dataclass(slots=True)
class Settler:
    """What settling a batch needs. One a source: its thread does one batch at a time, so batches stay in order."""

    source: Source
    settings: Settings
    scorer: Scorer
    store: ProfileStore
    sender: AsyncSender
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    _thread: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"settle-{self.source}")

    async def process(self, records: Sequence[Record]) -> Outcome:
        """Run the core over `records`, in the source's thread.

        Raises:
            DependencyGone: the model fails on everything.
        """
        metrics.BATCH_RECORDS.labels(self.source).observe(len(records))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._process, records)

    async def publish(self, outcome: Outcome) -> None:
        """Deltas and dead letters to Kafka. Must be done before their merge begins.

        Raises:
            DependencyGone: Kafka stays away.
        """
        settings, now_ms = self.settings, self.now_ms()
        messages = [delta_message(settings.delta_topic, delta) for delta in outcome.deltas]
        messages += [dead_letter_message(settings.dead_letter_topic, letter, now_ms) for letter in outcome.dead]
        with metrics.STAGE_SECONDS.labels(self.source, "publish").time():
            await self._insist(lambda: self.sender.send(messages))

    async def merge(self, records: Sequence[Record], outcome: Outcome) -> None:
        """Merge what was published of `records`. Of one source, calls must not overlap: the fence wants order.

        Raises:
            DependencyGone: Redis stays away.
        """
        with metrics.STAGE_SECONDS.labels(self.source, "merge").time():
            refused, erased = await self._insist(lambda: self._merge(outcome))
        if erased:  # events of before an erasure that came only now: their deltas were published all the same
            messages = [without_delta(self.settings.delta_topic, delta) for delta in erased]
            await self._insist(lambda: self.sender.send(messages))
        if refused:
            outcome = await self._bury(records, outcome, refused)
        self._count(records, outcome)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _process(self, records: Sequence[Record]) -> Outcome:
        settings = self.settings
        try:
            return process(records, self.source, self.scorer, settings.limits, settings.max_text_bytes, self.now_ms())
        except EngineFailed as error:
            raise DependencyGone(f"there is no engine any more: {error}") from error
        except Exception as error:  # noqa: BLE001  whatever a text does to the model must not lose its neighbours
            if len(records) > 1:
                middle = len(records) // 2
                first, second = self._process(records[:middle]), self._process(records[middle:])
                return Outcome(first.deltas + second.deltas, first.dead + second.dead, first.events + second.events)
            self._check_scorer(error)
            record = records[0]
            position = record.position
            # the message of an exception may quote the text: name its type only
            log.error("poison record", topic=position.topic, partition=position.partition, offset=position.offset,
                      error=type(error).__name__)  # fmt: skip
            return Outcome([], [DeadLetter(record, "poison", type(error).__name__, record.value)], 0)

    def _check_scorer(self, error: Exception) -> None:
        """A model that fails on everything is broken; its victims are not poison."""
        try:
            self.scorer.evidence([f"probe {self.now_ms()}"], self.source)  # a text that no cache holds
        except Exception:  # noqa: BLE001
            raise DependencyGone(f"the model fails on every text ({type(error).__name__})") from error

    async def _merge(self, outcome: Outcome) -> tuple[list[tuple[Position, str]], list[Delta]]:
        try:
            return [], await self.store.merge(outcome.deltas)
        except MergeRefused as error:
            return error.refused, error.erased

    async def _bury(
        self, records: Sequence[Record], outcome: Outcome, refused: Sequence[tuple[Position, str]]
    ) -> Outcome:
        """Make dead letters of the records that the store refused."""
        by_position = {record.position: record for record in records}
        dead = [
            DeadLetter(by_position[position], "refused", words, by_position[position].value)
            for position, words in refused
        ]
        await self.publish(Outcome([], dead, 0))
        return Outcome(outcome.deltas, outcome.dead + dead, outcome.events - len(dead))

    def _count(self, records: Sequence[Record], outcome: Outcome) -> None:
        now_ms = self.now_ms()
        freshness = metrics.FRESHNESS_SECONDS.labels(self.source)
        for record in records:
            freshness.observe(max(0, now_ms - record.timestamp) / 1000)
        for letter in outcome.dead:
            metrics.DEAD_LETTERS.labels(self.source, letter.reason).inc()
        metrics.EVENTS.labels(self.source).inc(outcome.events)

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await insist(attempt, self.settings.store_patience_s)


async def insist(attempt: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Repeat `attempt` while store or broker is away, for `patience_s` at most.

    Raises:
        DependencyGone
    """
    started = time.monotonic()
    waits = chain(_BACKOFF_S, repeat(_BACKOFF_S[-1]))
    while True:
        try:
            return await attempt()
        except (BrokerUnavailable, StoreUnavailable) as error:
            dependency = "kafka" if isinstance(error, BrokerUnavailable) else "redis"
            metrics.RETRIES.labels(dependency).inc()
            away_s = time.monotonic() - started
            if away_s > patience_s:
                raise DependencyGone(f"{dependency} has been away for {away_s:.0f} s: {error}") from error
            log.warning("dependency away, trying again", dependency=dependency, error=str(error))
            await asyncio.sleep(next(waits))
