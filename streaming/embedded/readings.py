"""What the workers say of themselves on /metrics, summed and turned into the few figures that `up` shows."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

# A worker answers from its event loop, which one forward pass of a chat batch may hold for a while.
_TIMEOUT_S = 3.0


@dataclass(slots=True)
class Reading:
    """Counts of all workers together at one moment."""

    at: float  # time.monotonic()
    events: Counter[str] = field(default_factory=Counter)  # by source; merged, or already in
    dead_letters: float = 0
    profiles: float = 0
    lag: float | None = None  # records; None until a worker knows it
    freshness: dict[str, Counter[float]] = field(default_factory=dict)  # source -> upper bound in s -> events up to it


def get(port: int, path: str, *, key: str = "") -> tuple[int, str]:
    """(status, body) of a GET on the loopback, with limner's API key if any; (0, "") where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def read(metrics_ports: Iterable[int]) -> Reading | None:
    """None when one of the workers does not answer now: a sum without it would jump."""
    pages = [get(port, "/metrics") for port in metrics_ports]
    if any(status != 200 for status, _ in pages):
        return None
    return parse([body for _, body in pages])


def parse(pages: Sequence[str]) -> Reading:
    reading = Reading(at=time.monotonic())
    for page in pages:
        for family in text_string_to_metric_families(page):
            for name, labels, value, *_ in family.samples:
                if name == "limner_events_total":
                    reading.events[labels["source"]] += int(value)
                elif name == "limner_dead_letters_total":
                    reading.dead_letters += value
                elif name == "limner_profiles":
                    reading.profiles += value
                elif name == "limner_lag_records":
                    reading.lag = (reading.lag or 0) + value
                elif name == "limner_freshness_seconds_bucket":
                    buckets = reading.freshness.setdefault(labels["source"], Counter())
                    buckets[float(labels["le"])] += int(value)
    return reading


def fresh_p99_s(before: Reading, now: Reading, source: str) -> float | None:
    """The 99th percentile of freshness of the events merged between two readings, in seconds.

    Linear inside a bucket, as Prometheus' histogram_quantile; the last bound where it lies above all
    bounds. None when nothing was merged.
    """
    buckets = Counter(now.freshness.get(source, Counter()))
    buckets.subtract(before.freshness.get(source, Counter()))
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank = 0.99 * buckets[bounds[-1]]
    lower, below = 0.0, 0
    for bound in bounds[:-1]:
        if buckets[bound] >= rank:
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower
