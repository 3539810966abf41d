"""A worker killed with SIGKILL while events pass: nothing is lost and nothing is counted twice."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.chaos import history

# `make chaos` sets CHAOS=full: ten kills under 20,000 orders and 2,000 chats. `make test` runs the short form.
FULL = os.environ.get("CHAOS") == "full"
KILLS, ORDERS, CHATS = (10, 20_000, 2_000) if FULL else (2, 3_000, 300)
# A killed worker's partitions are given out after its session has timed out.
SESSION_S = 6.0


@pytest.mark.timeout(900)
def test_sigkill_loses_nothing_and_counts_nothing_twice(any_kafka: str, redis_url: str) -> None:
    settings = history.fresh_settings(any_kafka, redis_url, session_timeout_s=SESSION_S)
    environment = history.environment(settings)
    chance = random.Random(7)
    sending = history.Sending(settings, ORDERS, CHATS, seconds=KILLS * (SESSION_S + 3.0))
    for _ in range(KILLS):
        worker = history.start_worker(environment)
        time.sleep(chance.uniform(0.3, 2.0))
        worker.kill()
        worker.stop()
    sending.join()
    wanted = sending.expected()
    with history.start_worker(environment):
        history.wait_until_settled(settings, wanted, timeout_s=120)
    history.assert_stored(settings, wanted)
    assert history.read_all(settings, settings.dead_letter_topic) == []
    assert history.deliveries(settings) > ORDERS + CHATS, "no kill fell into work: the test showed nothing"
