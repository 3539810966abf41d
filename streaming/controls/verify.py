"""Looking again, everywhere, for a customer who was erased."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from streaming.controls import receipts, search
from streaming.controls.decode import time_of
from streaming.controls.store import ControlStore
from streaming.profiles import fold
from streaming.profiles.delta import holds_before
from streaming.profiles.keys import erased_name
from streaming.settings import Settings


@dataclass(frozen=True, slots=True)
class Verified:
    """What an erasure left."""

    receipt: receipts.Receipt | None
    """The newest, its signature checked."""
    traces: dict[str, int]
    """Place -> how much of up to the erasure is still there; empty when it did its work."""
    sources: dict[str, int]
    """Source topic -> records of the producer's, which end by its retention."""


async def verify(settings: Settings, store: ControlStore, customer_id: str) -> Verified:
    """Search store and topics for a customer. Reads all of limner's topics and every profile.

    Raises:
        StoreUnavailable, BrokerUnavailable: it can't be searched.
        LimnerError: the receipt is not what was signed.
    """
    found = [msgspec.json.decode(raw, type=receipts.Receipt) for raw in await store.receipts(erased_name(customer_id))]
    receipt = max(found, key=lambda it: it.erased_at, default=None)
    if receipt is not None:
        receipts.check(receipt, receipts.signing_key(settings))
    # Without a receipt everything is a trace.
    erased_at = await store.erased_at(customer_id) if receipt is None else receipt.erased_at
    until = 2**63 if erased_at is None else erased_at
    traces = await _in_store(store, customer_id, until)
    deltas = await asyncio.to_thread(search.deltas, settings, customer_id, everywhere=True)
    letters = await asyncio.to_thread(search.dead_letters, settings, customer_id)
    controls = await asyncio.to_thread(search.controls, settings, customer_id)
    traces |= {
        "deltas": sum(holds_before(it.value, until) for it in deltas),
        "dead letters": sum(int(it.headers.get("limner-timestamp", b"0")) <= until for it in letters),
        "controls": sum((time_of(it.value) or 0) <= until for it in controls),
    }
    sources = await asyncio.to_thread(search.source_records, settings, customer_id)
    return Verified(receipt, {place: count for place, count in traces.items() if count}, sources)


async def _in_store(store: ControlStore, customer_id: str, until: int) -> dict[str, int]:
    profile = await store.profile(customer_id)
    since = profile is not None and (fold.erased_until(profile) or -1) >= until  # it began after the erasure
    encoded = customer_id.encode()
    links = 0
    async for raw in store.profiles():
        # the bytes first: of a million profiles hardly one is unpacked
        links += encoded in raw and fold.link_time(raw, customer_id) <= until
    audiences = [] if since else await store.audiences(customer_id)
    return {"profile": int(profile is not None and not since), "audiences": len(audiences), "links": links}
