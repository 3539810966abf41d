"""Identity, consent and erasure over HTTP: what is ordered is carried out by a worker and shows in look-ups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from streaming import kafka_admin
from streaming.embedded.broker import Broker
from streaming.embedded.store import Store
from tests.chaos import history
from tests.serving import chat, problem, running


@pytest.fixture(scope="module")
def api(broker: Broker, store: Store) -> Iterator[httpx.Client]:
    settings = history.fresh_settings(broker.bootstrap, store.url)
    kafka_admin.ensure_topics(settings)
    names = ("kafka", "redis", "namespace", "chat_topic", "order_topic", "control_topic", "delta_topic",
             "dead_letter_topic")  # fmt: skip
    with (
        history.start_worker(history.environment(settings)),
        running(**{name: getattr(settings, name) for name in names}) as (client, _),
    ):
        yield client


def known(api: httpx.Client, customer_id: str, events: int = 3) -> None:
    """A customer with that many chats."""
    said = [chat(event_id=f"{customer_id}-{n}", customer_id=customer_id, text=f"message {n}") for n in range(events)]
    token = api.post("/v1/events", json={"events": said}).json()["token"]
    answer = api.get(f"/v1/profiles/{customer_id}", params={"at_least": token, "wait_ms": 10_000})
    assert answer.status_code == 200, answer.text


def ordered(answer: httpx.Response) -> None:
    assert answer.status_code == 202, answer.text
    assert set(answer.json()) == {"event_id", "ts"}


def until(look: Callable[[], Any], wanted: Any) -> None:
    end = time.monotonic() + 20
    while (seen := look()) != wanted:
        assert time.monotonic() < end, f"still {seen!r}, not {wanted!r}"
        time.sleep(0.05)


def test_who_denies_a_purpose_is_not_shown_for_it(api: httpx.Client) -> None:
    known(api, "con-1")
    known(api, "con-2")
    ordered(api.put("/v1/profiles/con-1/consent", json={"purposes": {"ads": False}}))
    until(lambda: api.get("/v1/profiles/con-1/consent").json()["said"], {"ads": False})
    problem(api.get("/v1/profiles/con-1?purpose=ads"), 403, "consent-denied", "purpose")
    assert api.get("/v1/profiles/con-1?purpose=personalisation").status_code == 200
    assert api.get("/v1/profiles/con-1").status_code == 200
    tag = api.get("/v1/profiles/con-1").headers["etag"]
    known_tag = {"if-none-match": tag}
    problem(api.get("/v1/profiles/con-1?purpose=ads", headers=known_tag), 403, "consent-denied", "purpose")
    batch = api.post("/v1/profiles:batch", json={"ids": ["con-1", "con-2", "con-3"], "purpose": "ads"}).json()
    assert (batch["profiles"]["con-1"], batch["denied"]) == (None, ["con-1"])
    assert batch["profiles"]["con-2"]["customer_id"] == "con-2"
    candidates = [{"id": "a", "labels": {"interests/tea": 1}}]
    rank = {"customer_id": "con-1", "candidates": candidates, "purpose": "ads"}
    problem(api.post("/v1/rank", json=rank), 403, "consent-denied", "purpose")
    problem(api.get("/v1/profiles/con-1?purpose=sport"), 400, "invalid-argument", "purpose")
    problem(api.put("/v1/profiles/con-1/consent", json={"purposes": {}}), 422, "invalid-body", "purposes")


def test_consent_of_a_customer_without_events_is_kept(api: httpx.Client) -> None:
    assert api.get("/v1/profiles/con-9/consent").json()["granted"]["training"] is True
    ordered(api.put("/v1/profiles/con-9/consent", json={"purposes": {"training": False}}))
    until(lambda: api.get("/v1/profiles/con-9/consent").json()["granted"]["training"], False)
    problem(api.get("/v1/profiles/con-9"), 404, "unknown-customer", "id")


def test_linked_ids_are_looked_up_as_one_until_the_link_is_undone(api: httpx.Client) -> None:
    known(api, "left", 2)
    known(api, "right", 3)

    def seen(customer_id: str) -> tuple[int, list[str]]:
        found = api.get(f"/v1/profiles/{customer_id}").json()
        return found["events"]["chat"], found.get("linked", [])

    ordered(api.put("/v1/profiles/left/links/right"))
    until(lambda: (seen("left"), seen("right")), ((5, ["right"]), (5, ["left"])))
    ordered(api.put("/v1/profiles/right/block"))
    until(lambda: seen("left"), (2, []))
    ordered(api.delete("/v1/profiles/right/block"))
    until(lambda: seen("left"), (5, ["right"]))
    ordered(api.delete("/v1/profiles/left/links/right"))
    until(lambda: (seen("left"), seen("right")), ((2, []), (3, [])))
    problem(api.put("/v1/profiles/left/links/left"), 400, "invalid-argument", "other")
    problem(api.put("/v1/profiles/left/links/undefined"), 400, "invalid-argument", "other")
    problem(api.put("/v1/profiles/null/block"), 400, "invalid-argument", "id")


def test_an_erased_customer_is_gone_and_a_receipt_says_so(api: httpx.Client) -> None:
    known(api, "gone")
    exported = api.get("/v1/profiles/gone/export").json()
    assert exported["stored"]["id"] == "gone"
    assert len(exported["deltas"]) >= 1
    assert api.get("/v1/profiles/gone/erasures").json() == {"receipts": []}
    ordered(api.delete("/v1/profiles/gone"))
    until(lambda: len(api.get("/v1/profiles/gone/erasures").json()["receipts"]), 1)
    problem(api.get("/v1/profiles/gone"), 404, "unknown-customer", "id")
    (receipt,) = api.get("/v1/profiles/gone/erasures").json()["receipts"]
    assert receipt["removed"]["profile"] == 1
    assert receipt["signature"]
    assert "gone" not in receipt["customer"]
