"""The one exception tree. Every message says what is wrong, where, and what mends it."""

from __future__ import annotations


class LimnerError(Exception):
    """Something a person can mend. The command line prints it as one line and exits 1."""


class SettingsError(LimnerError):
    """A setting has a value that is not allowed; the message names it and what is."""


class BrokerUnavailable(LimnerError):
    """Kafka did not answer in time, or refused the request."""


class StoreUnavailable(LimnerError):
    """Redis did not answer in time, or can't take writes."""


class InvalidEvent(LimnerError):
    """A record or one item of an envelope that can't become an event.

    `reason` is one of `streaming.events.REASONS` (it labels dead letters and counters);
    `detail` names the field and what was expected, and never holds the customer's text.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
