"""A control carried out on the store. Registers and tombstones commute, so order and repetition don't matter."""

from __future__ import annotations

from streaming.controls.erasure import Eraser
from streaming.controls.store import ControlStore, Written
from streaming.controls.types import Alias, Block, Consent, Control, Erase, Erased, Merge, Unblock, Unmerge, tie
from streaming.errors import InvalidEvent
from streaming.profiles.fold import SHARED
from streaming.profiles.schema import MAX_LINKS


async def apply(control: Control, store: ControlStore, eraser: Eraser) -> None:
    """Carry out a control.

    Raises:
        StoreUnavailable, BrokerUnavailable: it is not done, or not wholly; call again.
        InvalidEvent: the store refuses it for good.
    """
    match control:
        case Alias() | Merge():
            await _link(store, control, linked=True)
        case Unmerge():
            await _link(store, control, linked=False)
        case Consent():
            for purpose, granted in control.purposes.items():
                written = await store.write(
                    control.customer_id, "c", purpose, granted, control.ts, tie(control.event_id)
                )
                _check(written)
        case Block() | Unblock():
            shared = isinstance(control, Block)
            _check(await store.write(control.customer_id, "i", SHARED, shared, control.ts, tie(control.event_id)))
        case Erase():
            await eraser.erase(control)
        case Erased():
            await store.mark_name(control.name, control.ts)


async def _link(store: ControlStore, control: Alias | Merge | Unmerge, *, linked: bool) -> None:
    """Write the register at both ends; at neither if an end is erased or full."""
    ends = [(control.customer_id, control.other), (control.other, control.customer_id)]
    written = [await store.write(end, "i", other, linked, control.ts, tie(control.event_id)) for end, other in ends]
    # An erasure may have come between the two writes, looked for links and found only one.
    erased = [(await store.erased_at(end) or -1) >= control.ts for end, _ in ends]
    if any(erased) or "full" in written:
        for end, other in ends:
            await store.unlink(end, other, control.ts)
    for outcome in written:
        _check(outcome)


def _check(written: Written) -> None:
    if written == "full":
        raise InvalidEvent(
            "refused", f"an id has {MAX_LINKS} links already: if several people share it, say so with a `block`"
        )
    if written == "version":
        raise InvalidEvent("refused", "the profile is of a newer schema version: upgrade the worker")
