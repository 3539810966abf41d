"""One way to count: every metric of every process, in Prometheus' naming.

Kept in one place so that an alert's author sees all names at once; each is moved where the thing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp beside each counter, which no query here uses

# From 1 ms (an order on an idle machine) to a minute (a worker that was away), about 1.6 apart.
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.008, 0.013, 0.02, 0.032, 0.05, 0.08, 0.1, 0.13, 0.2, 0.32,
            0.5, 0.8, 1.0, 1.3, 2.0, 3.2, 5.0, 8.0, 13.0, 20.0, 32.0, 60.0)  # fmt: skip

EVENTS = Counter("limner_events_total", "Events merged into a profile, or already in it.", ["source"])
DEAD_LETTERS = Counter(
    "limner_dead_letters_total", "Records or items sent to the dead-letter topic.", ["source", "reason"]
)
CONTROLS = Counter("limner_controls_total", "Controls carried out.", ["type"])
BATCH_RECORDS = Histogram("limner_batch_records", "Kafka records in one batch.", ["source"],
                          buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024))  # fmt: skip
STAGE_SECONDS = Histogram(
    "limner_stage_seconds", "Time of one batch in one stage.", ["source", "stage"], buckets=_SECONDS
)
FRESHNESS_SECONDS = Histogram(
    "limner_freshness_seconds", "From Kafka's record time to merged.", ["source"], buckets=_SECONDS
)
LAG = Gauge("limner_lag_records", "Records behind the high watermark.", ["topic", "partition"])
RETRIES = Counter("limner_retries_total", "Attempts repeated because a dependency failed.", ["dependency"])
PROFILES = Gauge("limner_profiles", "Profiles that this worker created since it started.")
MERGES = Counter("limner_merges_total", "Merge script calls: applied, or nothing new (a repeat).", ["outcome"])
PROFILE_BYTES = Histogram("limner_profile_bytes", "Size of a profile after a merge.",
                          buckets=(256, 512, 1024, 2048, 4096, 8192, 16384, 32768))  # fmt: skip
MODEL_INFO = Gauge("limner_model_info", "1 for the model version that serves.", ["version", "device"])
HTTP_SECONDS = Histogram("limner_http_request_seconds", "Time of one HTTP request.", ["route", "method", "status"],
                         buckets=_SECONDS)  # fmt: skip


class Engines:
    """What a pool of engines counts itself, read when someone asks. `stats` is `model.pool.EnginePool.stats`."""

    def __init__(self, stats: Callable[[], Mapping[str, int]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, words, key in (
            ("limner_text_cache_hits", "Texts whose answer was in memory.", "hits"),
            ("limner_text_disk_hits", "Texts whose answer was on disk.", "disk_hits"),
            ("limner_text_cache_misses", "Texts that went through the model.", "misses"),
            ("limner_engine_windows", "Windows of texts that engines took.", "windows"),
            ("limner_engine_window_texts", "Texts in these windows.", "window_texts"),
            ("limner_engine_window_tokens", "Tokens in these windows, about.", "window_tokens"),
            ("limner_engine_restarts", "Engine processes that were replaced.", "restarts"),
        ):
            yield CounterMetricFamily(name, words, stats[key])
        for name, words, key in (
            ("limner_text_cache_bytes", "Memory of answers to texts seen before.", "bytes"),
            ("limner_engine_waiting_tokens", "Tokens that wait for an engine, about.", "waiting_tokens"),
            ("limner_engines", "Engine processes that run.", "engines"),
        ):
            yield GaugeMetricFamily(name, words, stats[key])
