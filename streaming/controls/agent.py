"""Controls in the worker: decode, apply, and only then acknowledge."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streaming import logs, metrics
from streaming.agents.messages import dead_letter_message
from streaming.agents.settle import insist
from streaming.controls.apply import apply
from streaming.controls.decode import decode
from streaming.controls.erasure import Eraser
from streaming.controls.types import Control
from streaming.errors import InvalidEvent
from streaming.events.types import DeadLetter, Record

log = logs.get("limner.controls")


@dataclass(frozen=True, slots=True)
class Controller:
    """What a worker needs to carry controls out."""

    eraser: Eraser
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)

    async def settle(self, records: Sequence[Record]) -> None:
        """Carry out what the records say, one after the other; what can't be becomes a dead letter.

        Raises:
            DependencyGone: store or broker stays away; nothing may be acknowledged.
        """
        for record in records:
            try:
                control = decode(record, self.eraser.settings.limits, self.now_ms())
                if control is not None:
                    await self._apply(control)
            except InvalidEvent as fault:
                await self._bury(DeadLetter(record, fault.reason, fault.detail, record.value))

    async def _apply(self, control: Control) -> None:
        patience_s = self.eraser.settings.store_patience_s
        await insist(lambda: apply(control, self.eraser.store, self.eraser), patience_s)
        kind = type(control).__name__.lower()
        metrics.CONTROLS.labels(kind).inc()
        log.info("control carried out", type=kind)

    async def _bury(self, letter: DeadLetter) -> None:
        settings = self.eraser.settings
        message = dead_letter_message(settings.dead_letter_topic, letter, self.now_ms())
        await insist(lambda: self.eraser.sender.send([message]), settings.store_patience_s)
        metrics.DEAD_LETTERS.labels("control", letter.reason).inc()
        position = letter.record.position
        log.warning("control refused", reason=letter.reason, topic=position.topic, partition=position.partition,
                    offset=position.offset)  # fmt: skip
