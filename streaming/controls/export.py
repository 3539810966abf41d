"""Everything that limner knows of a customer, for the customer: GDPR article 15, and 20 in a form to take along."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgpack
import msgspec

from streaming.controls import search
from streaming.controls.store import ControlStore
from streaming.profiles import fold
from streaming.profiles.keys import erased_name
from streaming.profiles.schema import unfold
from streaming.profiles.view import Profile
from streaming.settings import Settings


async def export(settings: Settings, store: ControlStore, customer_id: str, now_ms: int) -> dict[str, Any]:
    """What is held of one id, as JSON can say it; of ids that it is linked with, their names only.

    `profile` is the view as of now, `stored` the same as it is kept. Bytes that are no text are given as base64.

    Raises:
        StoreUnavailable, BrokerUnavailable: it can't be searched.
        ProfileUnreadable
    """
    raw = await store.profile(customer_id)
    deltas = await asyncio.to_thread(search.deltas, settings, customer_id)
    letters = await asyncio.to_thread(search.dead_letters, settings, customer_id)
    controls = await asyncio.to_thread(search.controls, settings, customer_id)
    stored = None if raw is None else _unfolded(raw)
    known: dict[str, Any] = {
        "customer_id": customer_id,
        "read_ms": now_ms,
        "profile": None if raw is None else Profile.from_bytes(raw, now_ms),
        "stored": stored,
        "linked": [] if raw is None else fold.neighbours(raw),
        "consent": {} if stored is None else stored.get("c", {}),
        "audiences": await store.audiences(customer_id),
        "deltas": [{**_place(it), "delta": msgpack.unpackb(it.value, strict_map_key=False)} for it in deltas],
        "dead_letters": [{**_place(it), "headers": _texts(it.headers), "value": _text(it.value)} for it in letters],
        "controls": [{**_place(it), "control": _text(it.value)} for it in controls],
        "source_records": await asyncio.to_thread(search.source_records, settings, customer_id),
        "receipts": [msgspec.json.decode(it) for it in await store.receipts(erased_name(customer_id))],
    }
    return known


def _unfolded(raw: bytes) -> dict[str, Any]:
    content: dict[str, Any] = unfold(raw)
    return content


def _place(record: search.Found) -> dict[str, Any]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


def _texts(headers: dict[str, bytes]) -> dict[str, Any]:
    return {name: _text(value) for name, value in headers.items()}


def _text(value: bytes) -> Any:
    with suppress(UnicodeDecodeError):
        return value.decode()
    return {"base64": value}  # msgspec writes bytes as base64
