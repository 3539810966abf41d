"""Every example of docs/api.md, run in order as a reader would copy it, against a live stack with an exact scorer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming import kafka_admin
from streaming.embedded.broker import Broker
from streaming.embedded.store import Store
from tests.chaos import history
from tests.serving import chat, running

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
KEY = "a-key-of-the-docs"
COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def examples() -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def stack(broker: Broker, store: Store) -> Iterator[dict[str, str]]:
    settings = history.fresh_settings(broker.bootstrap, store.url)
    kafka_admin.ensure_topics(settings)
    with (
        history.start_worker(history.environment(settings)),
        running(
            kafka=settings.kafka, redis=settings.redis, namespace=settings.namespace,
            chat_topic=settings.chat_topic, order_topic=settings.order_topic, control_topic=settings.control_topic,
            delta_topic=settings.delta_topic, dead_letter_topic=settings.dead_letter_topic, api_key=KEY,
        ) as (client, _),
    ):  # fmt: skip
        client.headers["authorization"] = f"Bearer {KEY}"
        # The page's readers have profiles already; facets are known once someone has shown one of their labels.
        for id_ in ("c1", "c2"):
            some = [chat(event_id=f"{id_}-{n}", customer_id=id_, text=f"message {n}") for n in range(40)]
            token = client.post("/v1/events", json={"events": some}).json()["token"]
            read = client.get(f"/v1/profiles/{id_}", params={"at_least": token, "wait_ms": 10_000})
            assert read.status_code == 200
        yield {"API_URL": str(client.base_url), "API_KEY": KEY}


def test_every_example_of_the_page_runs(stack: dict[str, str]) -> None:
    found = examples()
    assert len(found) > 10
    for language, code in found:
        ran = subprocess.run(
            [*COMMANDS[language], code], env=os.environ | stack, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
        assert "urn:limner:problem" not in ran.stdout, f"{code}\n{ran.stdout}"
