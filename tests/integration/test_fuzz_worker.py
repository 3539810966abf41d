"""10,000 mutated records through a running worker: each is merged or a dead letter, and the worker lives."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from streaming import kafka_admin
from streaming.events.types import Source
from streaming.intake.producer import producer
from tests.chaos import history
from tests.integration.test_fuzz_events import ROUNDS, mutated


@pytest.mark.timeout(300)
def test_each_mutated_record_is_merged_or_a_dead_letter(any_kafka: str, redis_url: str) -> None:
    settings = history.fresh_settings(any_kafka, redis_url, max_record_bytes=100_000)
    kafka_admin.ensure_topics(settings)
    chance = random.Random(20_111_209)
    client = producer(settings)
    sent: Counter[Source] = Counter()
    for _ in range(ROUNDS):
        form, value, headers, _ = mutated(chance)
        value = value and value[:900_000]  # what a broker takes
        topic = settings.chat_topic if form.source == "chat" else settings.order_topic
        client.produce(topic, value, chance.choice([None, b"c1", b"\xff"]), headers=list(headers) or None)
        client.poll(0)
        sent[form.source] += 1
    assert client.flush(60) == 0
    wanted = history.expected(settings, dict(sent))
    assert wanted.dead > ROUNDS / 3
    with history.start_worker(history.environment(settings, LIMNER_MAX_RECORD_BYTES="100000")) as worker:
        history.wait_until_settled(settings, wanted, timeout_s=120)
        deadline = time.monotonic() + 60
        while len(letters := history.read_all(settings, settings.dead_letter_topic)) < wanted.dead:
            assert time.monotonic() < deadline, f"{len(letters)} of {wanted.dead} dead letters"
        assert worker.exit_code is None
    assert len(letters) == wanted.dead
    assert history.deliveries(settings) == wanted.events
    reasons = Counter(dict(letter.headers)["limner-reason"] for letter in letters)
    assert set(reasons) == {b"undecodable", b"invalid", b"too_large", b"future"}
