"""Forgetting a customer, step by step; each may be repeated, and a crash anywhere repeats them all.

Tombstone first: from then on nothing that happened before counts, whoever still brings it. Then what is there is
removed, profile last of the store, receipt last of all. The control itself holds the id, so it goes too and leaves
an `erased` in its place, which names the customer by a hash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from streaming import kafka_admin
from streaming.controls import receipts, search
from streaming.controls.decode import time_of
from streaming.controls.store import ControlStore
from streaming.controls.types import Erase, Erased, encode, record_key, tie
from streaming.intake.async_send import Message
from streaming.profiles import delta, fold
from streaming.profiles.keys import erased_name
from streaming.settings import Settings

# A part of limner that keeps something of customers: takes id and time, removes what it has of events up to it,
# and returns place -> how much. It may be called again for the same erasure.
Hook = Callable[[str, int], Awaitable[dict[str, int]]]
# Versions of models that were trained on what a customer said.
Lineage = Callable[[str], Awaitable[list[str]]]


class Sender(Protocol):
    async def send(self, messages: Sequence[Message]) -> object: ...


@dataclass(frozen=True, slots=True)
class Eraser:
    """What an erasure needs."""

    settings: Settings
    store: ControlStore
    sender: Sender
    hooks: Sequence[Hook] = ()
    lineage: Sequence[Lineage] = ()
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)

    async def erase(self, control: Erase) -> receipts.Receipt:
        """Carry it out, or finish what a crash interrupted.

        Raises:
            StoreUnavailable, BrokerUnavailable: it is not done; call again.
        """
        name = erased_name(control.customer_id)
        receipt = await self._earlier(name, control.ts)
        named = await asyncio.to_thread(search.controls, self.settings, control.customer_id)
        old = [record for record in named if (time_of(record.value) or 0) <= control.ts]
        if receipt is None:
            receipt = await self._remove(control, name, old)
            await self.store.keep_receipt(name, msgspec.json.encode(receipt))
        left = Erased(event_id=f"erased-{tie(control.event_id)}", ts=control.ts, name=name)
        topic = self.settings.control_topic
        await self.sender.send([Message(topic, record_key(left), encode(left))])
        await self.sender.send([_without(record) for record in old])
        return receipt

    async def _earlier(self, name: str, erased_at: int) -> receipts.Receipt | None:
        """The receipt of an erasure that covers this one."""
        for raw in await self.store.receipts(name):
            receipt = msgspec.json.decode(raw, type=receipts.Receipt)
            if receipt.erased_at >= erased_at:
                return receipt
        return None

    async def _remove(self, control: Erase, name: str, controls: Sequence[search.Found]) -> receipts.Receipt:
        settings, customer_id, erased_at = self.settings, control.customer_id, control.ts
        models = [version for asked in self.lineage for version in await asked(customer_id)]
        doomed = await self.store.mark_erased(customer_id, erased_at)
        linked = set(fold.linked_ever(doomed)) if doomed else set()
        linked |= {other for record in controls for other in search.names(record.value)} - {customer_id}
        unlinked = [await self.store.unlink(other, customer_id, erased_at) for other in sorted(linked)]
        audiences = await self.store.leave_audiences(customer_id)
        removed = {"profile": int(await self.store.delete(customer_id, erased_at)), "audiences": len(audiences)}
        await self.store.join_audiences(customer_id)  # with what a profile that began since shows
        removed["links"] = sum(unlinked)
        deltas = await asyncio.to_thread(search.deltas, settings, customer_id)
        deltas = [found for found in deltas if delta.holds_before(found.value, erased_at)]
        letters = await asyncio.to_thread(search.dead_letters, settings, customer_id)
        await self.sender.send([_without(record) for record in (*deltas, *letters)])
        removed |= {"deltas": len(deltas), "dead letters": len(letters), "controls": len(controls)}
        for hook in self.hooks:
            removed |= await hook(customer_id, erased_at)
        receipt = receipts.Receipt(
            customer=name,
            erased_at=erased_at,
            done_at=self.now_ms(),
            by="" if customer_id in control.by else control.by,
            removed=removed,
            kept=await asyncio.to_thread(self._kept),
            models=models,
        )
        return receipts.sign(receipt, receipts.signing_key(settings))

    def _kept(self) -> list[receipts.Kept]:
        settings, now = self.settings, self.now_ms()
        found = kafka_admin.retention_ms(settings, [settings.chat_topic, settings.order_topic])
        kept = []
        for topic, retention_ms in found.items():
            if retention_ms is None:
                until, why = None, "the broker does not say how long it keeps the producer's own records"
            elif retention_ms < 0:
                until, why = None, "kept for ever: set retention.ms of this topic"
            else:
                until, why = now + retention_ms, "the producer's own records, until the topic's retention.ms"
            kept.append(receipts.Kept(place=topic, until=until, why=why))
        # A segment is closed, compacted, and compacted again to be rid of the deletion's own key.
        until = now + round(3_000 * settings.compaction_s)
        why = "deleted; the bytes go when Kafka compacts the log"
        owned = (settings.delta_topic, settings.dead_letter_topic, settings.control_topic)
        return kept + [receipts.Kept(place=topic, until=until, why=why) for topic in owned]


def _without(record: search.Found) -> Message:
    """What deletes a record of a compacted topic."""
    return Message(record.topic, record.key, None, partition=record.partition)
