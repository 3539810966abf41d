"""From a record's bytes to a control, or a dead letter that says why not."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from streaming.controls.types import Alias, Control, Erase, Erased, Merge, Unmerge, is_nobody, owner, record_key
from streaming.errors import InvalidEvent
from streaming.events.types import Limits, Record
from streaming.events.wire import epoch_ms, reader

_read = reader(dict[str, Any])


def decode(record: Record, limits: Limits, now_ms: int) -> Control | None:
    """The control that a record holds; None for one without value, which deletes another and says nothing.

    Raises:
        InvalidEvent: `reason` and `detail` are a dead letter's.
    """
    if record.value is None:
        return None
    if len(record.value) > limits.max_record_bytes:
        raise InvalidEvent("too_large", f"{len(record.value)} bytes: Expected at most {limits.max_record_bytes}")
    fields = _read(record.value, "json")
    fields["ts"] = _epoch(fields.get("ts"))
    try:
        control: Control = msgspec.convert(fields, Control)
    except msgspec.ValidationError as error:
        # Of a wrong type or purpose msgspec quotes the value; what is allowed says more.
        detail = str(error) if "Invalid" not in str(error) else "type or purposes: see docs/privacy.md for those known"
        raise InvalidEvent("invalid", detail) from None
    epoch_ms(control.ts, limits, now_ms)
    _check(control)
    if record.key != record_key(control):
        raise InvalidEvent("invalid", "key: Expected customer_id, a newline and event_id: the topic is compacted")
    return control


def time_of(value: bytes) -> int | None:
    """The `ts` of a control's value, epoch ms; None where it has none that can be read."""
    try:
        ts = _epoch(_read(value, "json").get("ts"))
    except InvalidEvent:
        return None
    return ts if isinstance(ts, int) else None


def _epoch(ts: Any) -> Any:
    """RFC 3339 as epoch ms; anything else as it is."""
    if not isinstance(ts, str):
        return ts
    try:
        instant = datetime.fromisoformat(ts)
    except ValueError:
        raise InvalidEvent("invalid", "ts: Expected RFC 3339 or epoch milliseconds") from None
    if instant.tzinfo is None:
        raise InvalidEvent("invalid", "ts: Expected a time zone")
    return round(instant.timestamp() * 1000)


def _check(control: Control) -> None:
    for customer_id in _ids(control):
        if is_nobody(customer_id) and not isinstance(control, Erase):
            raise InvalidEvent("invalid", "customer_id or other: an id that stands for nobody can't be controlled")
    if isinstance(control, Alias | Merge | Unmerge) and control.customer_id == control.other:
        raise InvalidEvent("invalid", "other: Expected another id than customer_id")


def _ids(control: Control) -> list[str]:
    if isinstance(control, Erased):
        return []
    return [owner(control), control.other] if isinstance(control, Alias | Merge | Unmerge) else [owner(control)]
