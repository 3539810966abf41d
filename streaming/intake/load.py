"""`limner load`'s way of a file: open, map, group, send; and what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from streaming.events import Limits
from streaming.events.types import Event, Source
from streaming.intake import files, orders
from streaming.intake.interrupts import WholeSteps
from streaming.intake.jsonlines import Ready, read_events
from streaming.intake.mapping import Mapping, Options, resolve
from streaming.intake.rows import Refused, chat_reader, order_line_reader
from streaming.intake.send import Sender
from streaming.kafka_admin import ensure_topics
from streaming.settings import Settings

# Line numbers printed for each reason: enough to go and look.
EXAMPLES = 10
# Lines between two looks at the clock by whoever shows the progress.
PROGRESS_EVERY = 2_000

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()


@dataclass(slots=True)
class Summary:
    """What was done so far; `load` keeps it current, so it also holds after an error or Ctrl-C."""

    lines: int = 0
    events: Counter[Source] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # reason -> (file, line), at most EXAMPLES
    late: list[tuple[str, int]] = field(default_factory=list)  # first lines of late parts of orders, at most EXAMPLES
    late_count: int = 0
    held: int = 0  # lines of orders that more lines may belong to
    acknowledged: int = 0


def load(
    settings: Settings,
    paths: Sequence[str],
    options: Options,
    summary: Summary,
    *,
    on_refused: Callable[[str, int, Refused], None],
    on_progress: Callable[[int, float], None],
) -> None:
    """Send files to Kafka, in constant memory. Creates missing topics.

    `on_refused(file, line number, refusal)` gets each refused line; `on_progress(file's index,
    share read)` is called every `PROGRESS_EVERY` lines. After Ctrl-C, or where a file can't be read
    on, what was handed to Kafka is still waited for; lines of orders that may have been incomplete
    are not sent and stand in `summary.held`, so that sending the whole file later gives the same ids.

    Raises:
        SettingsError: a file does not fit the options; nothing was sent.
        LimnerError: a file can't be read on.
        BrokerUnavailable: Kafka did not take everything; `summary.acknowledged` says how much it did.
    """
    limits = settings.limits
    for path in paths:  # wrong use shows before anything is sent
        if path != files.STDIN:
            with files.open_source(path, options.encoding, settings.max_record_bytes) as source:
                if table := _table(source, options, lambda number, refused: None):
                    resolve(table.name, table.columns, options)
    ensure_topics(settings)
    steps = WholeSteps()
    sender = Sender(settings, steps)
    with steps.watching():
        try:
            for index, path in enumerate(paths):
                with files.open_source(path, options.encoding, settings.max_record_bytes) as source:
                    account = _Account(source, index, summary, on_refused, on_progress)
                    for ready in _events(source, options, limits, account):
                        sender.send(settings.topic_of(ready.kind), ready.customer_id, ready.value)
                        summary.events[ready.kind] += 1
                        summary.acknowledged = sender.acknowledged
        finally:
            try:
                sender.flush()
            finally:
                summary.acknowledged = sender.acknowledged


@dataclass(slots=True)
class _Account:
    """Where the lines of one file went."""

    source: files.Table | files.Lines
    index: int
    summary: Summary
    on_refused: Callable[[str, int, Refused], None]
    on_progress: Callable[[int, float], None]

    def counted(self, lines: Iterable[T]) -> Iterator[T]:
        for line in lines:
            self._count()
            yield line

    def _count(self) -> None:
        self.summary.lines += 1
        if self.summary.lines % PROGRESS_EVERY == 0:
            self.on_progress(self.index, self.source.done())

    def refuse(self, number: int, refused: Refused, lines: int = 1) -> None:
        self.summary.refused[refused.reason] += lines
        examples = self.summary.examples.setdefault(refused.reason, [])
        if len(examples) < EXAMPLES:
            examples.append((self.source.name, number))
        self.on_refused(self.source.name, number, refused)

    def holding(self, lines: Iterable[T]) -> Iterator[T]:
        for line in lines:
            self.summary.held += 1
            yield line

    def late(self, number: int) -> None:
        self.summary.late_count += 1
        if len(self.summary.late) < EXAMPLES:
            self.summary.late.append((self.source.name, number))

    def refuse_unread(self, number: int, refused: Refused) -> None:
        """A line that could not even be taken apart."""
        self._count()
        self.refuse(number, refused)


def _table(source: files.Table | files.Lines, options: Options, refuse: files.Refuse) -> files.Table | None:
    """The source's rows; None for lines that already are events."""
    if isinstance(source, files.Table):
        return source
    return files.as_table(source, refuse) if options.mapped else None


def _events(source: files.Table | files.Lines, options: Options, limits: Limits, account: _Account) -> Iterator[Ready]:
    now_ms = round(time.time() * 1000)
    table = _table(source, options, account.refuse_unread)
    if isinstance(source, files.Lines) and table is None:
        lines = account.counted(source.lines(account.refuse_unread))
        yield from read_events(lines, options.kind, limits, now_ms, account.refuse)
    elif table is not None:
        mapping = resolve(table.name, table.columns, options)
        rows = account.counted(table.rows(tuple(mapping.columns.values()), account.refuse_unread))
        for number, event, held in _mapped(mapping, rows, limits, now_ms, account):
            value = _ENCODER.encode(event)
            if len(value) > limits.max_record_bytes:
                size = f"{held} lines from here on make {len(value)} bytes, an event has at most"
                limit = f"{limits.max_record_bytes} (LIMNER_MAX_RECORD_BYTES)"
                account.refuse(number, Refused("too large", f"{size} {limit}"), held)
            else:
                yield Ready(number, mapping.kind, event.customer_id, value)


def _mapped(
    mapping: Mapping, rows: Iterable[files.Row], limits: Limits, now_ms: int, account: _Account
) -> Iterator[tuple[int, Event, int]]:
    """(number of the first line, event, number of lines)"""
    if mapping.kind == "chat":
        for number, chat in _accepted(chat_reader(mapping, limits, now_ms), rows, account):
            yield number, chat, 1
        return
    lines = account.holding(_accepted(order_line_reader(mapping, limits, now_ms), rows, account))
    for number, order in orders.group(lines, account.late):
        account.summary.held -= len(order.lines)
        yield number, order, len(order.lines)


def _accepted(
    read: Callable[[int, Sequence[Any]], T], rows: Iterable[files.Row], account: _Account
) -> Iterator[tuple[int, T]]:
    for number, values in rows:
        try:
            found = read(number, values)
        except Refused as refused:
            account.refuse(number, refused)
        else:
            yield number, found
