"""After an erasure, the customer's bytes: nowhere in the store's files, in Kafka's log files or in a worker's log."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from kafka.admin import ConfigResource

from streaming import kafka_admin
from streaming.controls import send
from streaming.controls.types import Consent, Erase, Merge
from streaming.embedded.processes import Child, free_port, port_is_free
from streaming.embedded.store import Store
from streaming.intake.producer import producer
from streaming.settings import Settings
from tests.chaos import history
from tests.conftest import HAS_APACHE, KAFKA_HOME

pytestmark = [pytest.mark.kafka, pytest.mark.skipif(not HAS_APACHE, reason="the embedded broker does not compact")]

ID = "zq7-xylograph"
# Short: in a compressed batch a text as short as these stands as it is, once at least.
NEEDLES = (b"zq7-xylograph", b"marmalade")

# A cleaner that looks every half second and deletes at once: with Kafka's defaults the same takes minutes.
_QUICK = "log.cleaner.backoff.ms=500\nlog.retention.check.interval.ms=500\nlog.segment.delete.delay.ms=100"


@pytest.fixture(scope="module")
def kafka_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A Kafka of its own that compacts quickly: its address and its folder."""
    folder, port = tmp_path_factory.mktemp("kafka"), free_port()
    while not port_is_free(port + 1):
        port = free_port()
    program = str(KAFKA_HOME / "kafka")
    try:
        environment = {**os.environ, "KAFKA_PORT": str(port), "KAFKA_PROPS": _QUICK}
        started = subprocess.run(
            [program, "up", str(folder)], env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=120
        )
        yield started.stdout.strip().splitlines()[-1], folder
    finally:
        subprocess.run([program, "stop", str(folder)], check=False, timeout=60)


@pytest.fixture(scope="module")
def durable_store() -> Iterator[Store]:
    with Store.start(appendonly=True) as store:
        yield store


def holding(folder: Path) -> list[str]:
    """The files under a folder that hold a needle."""
    found = []
    for path in folder.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError:  # it went meanwhile
            continue
        if any(needle in content for needle in NEEDLES):
            found.append(str(path.relative_to(folder)))
    return found


def wait(what: Callable[[], Any], within_s: float) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)


def test_no_byte_of_an_erased_customer_is_left(
    kafka_folder: tuple[str, Path], durable_store: Store, tmp_path: Path
) -> None:
    address, folder = kafka_folder
    settings = history.fresh_settings(
        address, durable_store.url, cache_dir=tmp_path, compaction_s=1.0, partitions=1, chat_batch=4
    )
    kafka_admin.ensure_topics(settings)
    short_retention(settings)
    environment = history.environment(
        settings, LIMNER_CACHE_DIR=str(tmp_path), LIMNER_PARTITIONS="1", LIMNER_COMPACTION_S="1"
    )
    with history.start_worker(environment) as worker:
        live_and_be_forgotten(settings, folder, durable_store)
        fill(settings, lambda: not holding(folder))
        with redis.Redis.from_url(durable_store.url) as client:
            client.save()  # dump.rdb
            client.bgrewriteaof()
            wait(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 20)
        assert holding(durable_store.folder) == []
        assert_not_logged(worker)


def live_and_be_forgotten(settings: Settings, folder: Path, store: Store) -> None:
    """Chats, a dead letter, a link, consent; then an erasure."""
    now = send.now_ms()
    client = producer(settings)
    for number in range(12):
        event = {"event_id": f"e{number}", "customer_id": ID, "ts": now, "text": f"marmalade {number}"}
        client.produce(settings.chat_topic, json.dumps(event).encode(), ID.encode())
        client.produce(
            settings.chat_topic, json.dumps({**event, "customer_id": "bo"}).replace("marmalade", "jam"), "bo"
        )
    client.produce(settings.chat_topic, b'{"text": "marmalade"}', ID.encode())
    client.flush(10)
    send.send(settings, Merge(event_id="m", ts=now, customer_id="bo", other=ID))
    send.send(settings, Consent(event_id="c", ts=now, customer_id=ID, purposes={"ads": False}))
    with redis.Redis.from_url(settings.redis) as redis_client:
        wait(lambda: ID.encode() in (redis_client.get(f"{settings.namespace}:{{bo}}:p") or b""), 30)
        wait(lambda: b"ads" in (redis_client.get(f"{settings.namespace}:{{{ID}}}:p") or b""), 30)
        topics = (settings.chat_topic, settings.delta_topic, settings.dead_letter_topic, settings.control_topic)
        # the search finds what is there, or it would prove nothing
        wait(lambda: all(any(topic in path for path in holding(folder)) for topic in topics), 30)
        assert holding(store.folder)
        send.send(settings, Erase(event_id="x", ts=send.now_ms(), customer_id=ID))
        wait(lambda: list(redis_client.scan_iter(f"{settings.namespace}:*:r:*")), 30)
        assert redis_client.get(f"{settings.namespace}:{{bo}}:p")


def fill(settings: Settings, done: Callable[[], bool]) -> None:
    """Others go on: a segment that nobody writes to is not closed, and what is not closed is not compacted."""
    client = producer(settings, linger_ms=0)
    end = time.monotonic() + 60
    number = 0
    while not done():
        assert time.monotonic() < end, "bytes of the erased customer are still in Kafka's files"
        number += 1
        event = {"event_id": f"f{number}", "customer_id": f"c{number}", "ts": send.now_ms(), "text": "jam"}
        client.produce(settings.chat_topic, json.dumps(event).encode(), f"c{number}".encode())
        client.produce(settings.chat_topic, b"broken", f"c{number}".encode())
        client.flush(10)
        send.send(settings, Consent(event_id="c", ts=send.now_ms(), customer_id=f"c{number}", purposes={"ads": True}))
        time.sleep(0.3)


def short_retention(settings: Settings) -> None:
    """Of the producers' own topics, whose records limner can't take out."""
    short = {"retention.ms": "1000", "segment.ms": "1000"}
    with closing(kafka_admin.connect(settings)) as admin:
        admin.alter_configs([ConfigResource("TOPIC", topic, short) for topic in (settings.chat_topic,)])


def assert_not_logged(worker: Child) -> None:
    assert "control carried out" in (worker.folder / "log").read_text()
    assert holding(worker.folder) == []
