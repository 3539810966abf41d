"""The demo's events to Kafka, in time order, as if the newest had just happened."""

from __future__ import annotations

import gzip
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from streaming.intake.jsonlines import kind_of
from streaming.intake.send import Sender
from streaming.settings import Settings

EVENTS_FILE = Path(__file__).parent / "data" / "events.jsonl.gz"

# The whole demo in under a minute, and well within what a worker on two cores takes.
EVENTS_PER_S = 100.0
# Sent before one look at the clock: at 100 events/s, ten bursts a second.
BURST_S = 0.1


def feed(
    settings: Settings,
    *,
    stop: threading.Event,
    events_per_s: float = EVENTS_PER_S,
    on_sent: Callable[[int, int], None] | None = None,
) -> int:
    """Send the demo's events at a steady pace until all are sent or `stop` is set; returns how many.

    Event times are shifted by one constant, so that the newest event is now and the spacing is the
    real one: nine months of history, of which the last days are fresh. `on_sent(sent, total)` is
    called about ten times a second. The topics must exist.

    Event ids are the same in every run, and no customer has more events of a kind than a profile
    remembers ids. So on a store that has seen the demo, a second run changes nothing: its events
    are dropped as repeats, and the figures (and the first run's times) stay. For a demo from the
    start, use embedded servers or another `LIMNER_NAMESPACE`.

    Raises:
        BrokerUnavailable: Kafka did not take an event.
    """
    demo = events()
    started = time.monotonic()
    shift = round(time.time() * 1000) - demo[-1]["ts"]
    sender = Sender(settings)
    sent = 0
    while sent < len(demo) and not stop.wait(BURST_S if sent else 0):
        due = min(len(demo), 1 + int((time.monotonic() - started) * events_per_s))
        for event in demo[sent:due]:
            value = msgspec.json.encode(event | {"ts": event["ts"] + shift})
            sender.send(settings.topic_of(kind_of(value)), event["customer_id"], value)
        sent = due
        if on_sent:
            on_sent(sent, len(demo))
    sender.flush()
    return sent


def sample_customers(n: int) -> list[str]:
    """Ids of customers worth looking at: many orders and many chats, the richest first."""
    orders, chats = Counter[str](), Counter[str]()
    for event in events():
        (orders if "lines" in event else chats)[event["customer_id"]] += 1
    return sorted(orders, key=lambda customer: (-orders[customer] * chats[customer], customer))[:n]


def events() -> list[dict[str, Any]]:
    """The demo's chats and orders as they are shipped, in time order."""
    with gzip.open(EVENTS_FILE) as file:
        return [msgspec.json.decode(line) for line in file]
