"""What a reader's call can end in, beside `StoreUnavailable` and `ProfileUnreadable`: all are `LimnerError`."""

from __future__ import annotations

from streaming.errors import LimnerError


class InvalidArgument(LimnerError):
    """An argument is out of range; `field` names it, `detail` says what is allowed."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class UnknownFacet(LimnerError):
    """No customer has ever shown a label of this facet: a misspelling, or a pack that is not in force."""

    def __init__(self, facet: str) -> None:
        super().__init__(f"facet {facet!r} is not known: no event has given evidence for it yet")
        self.facet = facet


class NotYetVisible(LimnerError):
    """The profile did not come to hold an event in time: it is still on its way, or was a dead letter."""

    def __init__(self, customer_id: str, topic: str, partition: int, offset: int, timeout_s: float) -> None:
        super().__init__(
            f"the profile of {customer_id!r} did not hold {topic}/{partition} offset {offset} within {timeout_s:g} s: "
            "wait longer, or look at the worker's lag and its dead letters"
        )
