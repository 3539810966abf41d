"""The one producer configuration: file loads, HTTP ingestion, the demo and the worker's deltas use it."""

from __future__ import annotations

import logging
from typing import Any

from confluent_kafka import Producer

from streaming.access.kafka import librdkafka_options
from streaming.settings import Settings

# librdkafka reports lost connections here; without a configured log they must not run into a progress bar.
_log = logging.getLogger("librdkafka")
_log.addHandler(logging.NullHandler())


def producer(settings: Settings, **extra: Any) -> Producer:
    """An idempotent producer to `settings.kafka`; `extra` holds librdkafka settings with `_` for `.`.

    It connects in the background and never raises for an absent broker: a message that can't be
    delivered comes back to its `on_delivery` with an error, and `produce` raises BufferError when
    the queue is full (poll, then try again).
    """
    config: dict[str, Any] = {
        **librdkafka_options(settings),
        "client.id": "limner",
        # A retry after a lost acknowledgement must not write a record twice or out of order.
        "enable.idempotence": True,
        # An event counts as taken when every in-sync replica has it.
        "acks": "all",
        # Java's, aiokafka's and kafka-python's choice by key: one customer's events stay in one
        # partition, whoever sends them. librdkafka's own default (CRC32) differs.
        "partitioner": "murmur2_random",
        # 5 ms gathers a batch under load and is lost in the freshness aim of a second.
        "linger.ms": 5,
        # JSON of events shrinks about fourfold; lz4 costs the least CPU, and every Kafka since 0.10 reads it.
        "compression.type": "lz4",
        # Bounds memory: 64 MiB holds about 100,000 orders, far more than a round trip needs.
        "queue.buffering.max.kbytes": 65_536,
        # A broker away for longer is a failure to report, not to sit out.
        "message.timeout.ms": int(settings.store_patience_s * 1000),
        # Records as large as the consumer takes. librdkafka's default of 1,000,000 is just below.
        "message.max.bytes": max(1_000_000, settings.max_record_bytes),
    }
    config |= {name.replace("_", "."): value for name, value in extra.items()}
    return Producer(config, logger=_log)
