"""The HTTP service and `limner profile`, as processes, over a real store and a real broker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from math import exp, log2
from pathlib import Path
from typing import Any, get_args

import httpx
import msgspec
import pytest
import redis
from confluent_kafka import Consumer, TopicPartition

from streaming.embedded.broker import Broker
from streaming.embedded.processes import Child
from streaming.embedded.store import Store
from streaming.lookup.routes import ROUTES
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from streaming.profiles.schema import PROFILE_VERSION, pack
from tests.serving import HALF_LIFE, chat, fresh_topics, order, problem, running, stored

KEY = "s3cret-key"


@pytest.fixture(scope="module")
def topics(broker: Broker) -> dict[str, str]:
    return fresh_topics(broker)


@pytest.fixture(scope="module")
def service(store: Store, broker: Broker, topics: dict[str, str]) -> Iterator[httpx.Client]:
    with running(redis=store.url, kafka=broker.bootstrap, **topics) as (client, _):
        yield client


@pytest.fixture
def filled(redis_url: str) -> str:
    now = int(time.time() * 1000)
    with redis.Redis.from_url(redis_url) as client:
        for customer_id in ("c1", "a/b c?中"):
            client.set(profile_key("lm", customer_id), stored(customer_id, now))
        client.set(profile_key("lm", "newer"), pack({"v": PROFILE_VERSION + 1}))
        client.hset(half_lives_key("lm"), "interests", HALF_LIFE)
        weights = {"c1": 2.0, "a/b c?中": 0.1}
        client.zadd(
            audience_key("lm", "interests", "手机"), {id_: log2(w) + now / HALF_LIFE for id_, w in weights.items()}
        )
    return redis_url


# --- look-ups ---------------------------------------------------------------------------------------


def test_a_profile_is_read_as_of_now(service: httpx.Client, filled: str) -> None:
    body = service.get("/v1/profiles/c1").json()
    label = body["labels"][0]
    assert (body["customer_id"], label["label"], label["freshness"]) == ("c1", "手机", "FRESH")
    assert label["strength"] == pytest.approx(1 - exp(-2), abs=1e-3)
    assert body["sentiment"] == pytest.approx(0.5, abs=1e-3)
    assert body["orders"]["money"]["GBP"]["spent"] == "12.5000"
    assert "fence" not in body


def test_an_id_may_hold_what_urls_escape(service: httpx.Client, filled: str) -> None:
    assert service.get("/v1/profiles/a%2Fb%20c%3F%E4%B8%AD").json()["customer_id"] == "a/b c?中"


def test_an_unknown_customer_is_404(service: httpx.Client, filled: str) -> None:
    assert "'nobody'" in problem(service.get("/v1/profiles/nobody"), 404, "unknown-customer", "id")["detail"]


def test_a_newer_profile_fails_alone_among_look_ups_of_one_moment(service: httpx.Client, filled: str) -> None:
    answers: list[httpx.Response] = []
    ids = ["newer", "c1"] * 8
    threads = [threading.Thread(target=lambda i=i: answers.append(service.get(f"/v1/profiles/{i}"))) for i in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        if answer.url.path.endswith("newer"):
            problem(answer, 500, "profile-unreadable")
        else:
            assert answer.status_code == 200
    assert len(answers) == len(ids)


def test_a_batch_keeps_unknown_customers_as_null(service: httpx.Client, filled: str) -> None:
    found = service.post("/v1/profiles:batch", json={"ids": ["c1", "nobody"]}).json()["profiles"]
    assert found["c1"]["customer_id"] == "c1"
    assert found["nobody"] is None


def test_an_audience_is_ordered_and_cut(service: httpx.Client, filled: str) -> None:
    path = "/v1/audiences/interests/%E6%89%8B%E6%9C%BA"
    members = service.get(path).json()["members"]
    assert [member["customer_id"] for member in members] == ["c1", "a/b c?中"]
    assert members[0]["strength"] == pytest.approx(1 - exp(-2), abs=1e-3)
    assert len(service.get(path, params={"limit": 1}).json()["members"]) == 1
    assert len(service.get(path, params={"min_strength": 0.5}).json()["members"]) == 1
    assert service.get("/v1/audiences/interests/unseen").json()["members"] == []
    problem(service.get("/v1/audiences/hobbies/tea"), 404, "unknown-facet", "facet")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/profiles/%7B", "id"),
        ("/v1/profiles/" + "x" * 129, "id"),
        ("/v1/profiles/c1?at=3", "at"),
        ("/v1/audiences/interests/x?limit=0", "limit"),
        ("/v1/audiences/interests/x?limit=ten", "limit"),
        ("/v1/audiences/interests/x?limit=10001", "limit"),
        ("/v1/audiences/interests/x?limit=1&limit=2", "limit"),
        ("/v1/audiences/interests/x?min_strength=1", "min_strength"),
        ("/v1/audiences/interests/x?min_strength=nan", "min_strength"),
        ("/v1/audiences/interests/x?min_strenght=0.5", "min_strenght"),
        ("/v1/audiences/%7B/x", "facet"),
    ],
)
def test_a_wrong_parameter_is_named(service: httpx.Client, filled: str, path: str, field: str) -> None:
    problem(service.get(path), 400, "invalid-argument", field)


@pytest.mark.parametrize("path", ["/v1/profiles:batch", "/v1/events"])
def test_a_body_that_is_none_is_refused(service: httpx.Client, path: str) -> None:
    sent = {"content-type": "application/json"}
    problem(service.post(path, content=b"{", headers=sent), 400, "malformed-body")
    problem(service.post(path, content=b"", headers=sent), 400, "malformed-body")
    problem(service.post(path, json=[1]), 422, "invalid-body")
    problem(
        service.post(path, content=b"{}", headers={"content-type": "text/plain"}),
        415,
        "unsupported-media-type",
        "Content-Type",
    )
    problem(service.post(path, content=b" " * (4 << 20) + b"{}", headers=sent), 413, "body-too-large")


def test_text_that_is_not_utf_8_is_refused(service: httpx.Client) -> None:
    sent = {"content-type": "application/json"}
    problem(service.post("/v1/profiles:batch", content=b'{"ids":["\xff"]}', headers=sent), 400, "malformed-body")
    event = json.dumps(chat()).encode().replace(b"hi", b"\xff")
    body = problem(service.post("/v1/events", content=event, headers=sent), 422, "invalid-events")
    assert body["results"][0]["reason"] == "undecodable"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "ids"),
        ({"ids": "c1"}, "ids"),
        ({"ids": ["c1", 2]}, "ids[1]"),
        ({"ids": ["c1", "{"]}, "ids[1]"),
        ({"ids": ["x"] * 1001}, "ids"),
        ({"ids": [], "id": 1}, "id"),
    ],
)
def test_a_wrong_field_of_a_batch_is_named(service: httpx.Client, body: object, field: str) -> None:
    assert "regex" not in problem(service.post("/v1/profiles:batch", json=body), 422, "invalid-body", field)["detail"]


def test_other_paths_and_methods_are_problems_too(service: httpx.Client) -> None:
    problem(service.get("/v1/nothing"), 404, "no-such-path")
    refused = service.put("/v1/profiles/c1")
    problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "DELETE, GET"
    problem(service.request("BREW", "/v1/events"), 405, "method-not-allowed")


# --- events -----------------------------------------------------------------------------------------


def in_kafka(broker: Broker, topic: str) -> list[tuple[str, dict[str, Any], int]]:
    """(key, event, partition) of everything in a topic."""
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": uuid.uuid4().hex, "enable.auto.commit": False}
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(4)])
        found = []
        while message := consumer.poll(1.0):
            assert message.error() is None
            found.append((message.key().decode(), json.loads(message.value()), message.partition()))
        return found
    finally:
        consumer.close()


def test_events_are_in_kafka_once_taken(service: httpx.Client, broker: Broker, topics: dict[str, str]) -> None:
    mixed = [
        chat(event_id="m1", customer_id="客户"),
        order(event_id="m2", customer_id="客户"),
        chat(event_id="m3", kind="chat"),
        chat(event_id="m4", ts=5),
        {"event_id": "m5", "kind": "refund"},
        {"event_id": "m6"},
        7,
    ]
    one = service.post("/v1/events", json=chat(event_id="m0", customer_id="客户"))
    answer = service.post("/v1/events", json={"events": mixed})
    assert (one.status_code, answer.status_code) == (202, 202)
    body = answer.json()
    assert (body["accepted"], body["rejected"]) == (3, 4)
    assert [result["status"] for result in body["results"]] == ["accepted"] * 3 + ["rejected"] * 4
    assert [result.get("event_id") for result in body["results"]] == ["m1", "m2", "m3", "m4", "m5", "m6", None]
    assert body["results"][3]["reason"] == "invalid"
    assert body["results"][3]["detail"].startswith("ts:")
    assert body["results"][4]["detail"].startswith("kind:")
    assert body["results"][5]["detail"].startswith("kind:")

    chats = {
        event["event_id"]: (key, event, partition) for key, event, partition in in_kafka(broker, topics["chat_topic"])
    }
    orders = {event["event_id"]: (key, event) for key, event, _ in in_kafka(broker, topics["order_topic"])}
    assert {"m0", "m1", "m3"} <= set(chats)
    assert not {"m4", "m5", "m6"} & set(chats)
    assert orders["m2"] == ("客户", mixed[1])
    assert chats["m1"][:2] == ("客户", mixed[0])
    assert chats["m0"][2] == chats["m1"][2]  # one customer, one partition


def test_a_request_without_a_good_event_is_refused(service: httpx.Client) -> None:
    body = problem(service.post("/v1/events", json=chat(customer_id="{")), 422, "invalid-events")
    assert "customer_id" in body["detail"]
    assert body["results"][0]["reason"] == "invalid"
    future = problem(service.post("/v1/events", json=chat(ts="2099-01-01T00:00:00Z")), 422, "invalid-events")
    assert future["results"][0]["reason"] == "future"
    nested = {"events": [{"kind": "chat", "events": [chat(), chat()]}]}
    assert "envelope of 2" in problem(service.post("/v1/events", json=nested), 422, "invalid-events")["detail"]


def test_the_largest_event_passes_and_one_beyond_is_refused(service: httpx.Client) -> None:
    room = 1_048_576 - 600 - len(json.dumps(chat(text=""), separators=(",", ":")))
    assert service.post("/v1/events", json=chat(text="x" * room)).status_code == 202
    refused = problem(service.post("/v1/events", json=chat(text="x" * (room + 1))), 422, "invalid-events")
    assert refused["results"][0]["reason"] == "too_large"


@pytest.mark.parametrize("events", [[], [chat()] * 1001, 5])
def test_the_list_of_events_has_bounds(service: httpx.Client, events: object) -> None:
    problem(service.post("/v1/events", json={"events": events}), 422, "invalid-body", "events")


def test_a_thousand_events_are_taken_at_once(service: httpx.Client) -> None:
    many = {"events": [chat(event_id=f"k{i}", customer_id=f"c{i}") for i in range(1000)]}
    assert service.post("/v1/events", json=many).json()["accepted"] == 1000


# --- what an operator sees --------------------------------------------------------------------------


def test_openapi_lists_every_route_and_resolves(service: httpx.Client) -> None:
    document = service.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert listed == {(route.method, route.path) for route in ROUTES}

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert {"Profile", "Problem", "Chat", "Order", "Audience"} <= set(document["components"]["schemas"])
    names = [parameter["name"] for parameter in document["paths"]["/v1/audiences/{facet}/{label}"]["get"]["parameters"]]
    assert names == ["facet", "label", "limit", "min_strength", "cursor"]


def test_each_status_that_a_route_answers_is_in_openapi(service: httpx.Client, filled: str) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    asked = [
        ("GET", "/v1/profiles/{id}", "/v1/profiles/c1"), ("GET", "/v1/profiles/{id}", "/v1/profiles/%7B"),
        ("GET", "/v1/profiles/{id}", "/v1/profiles/no"), ("GET", "/v1/profiles/{id}", "/v1/profiles/newer"),
        ("GET", "/v1/audiences/{facet}/{label}", "/v1/audiences/no/x"), ("POST", "/v1/events", "/v1/events"),
        ("POST", "/v1/profiles:batch", "/v1/profiles:batch?x=1"), ("GET", "/ready", "/ready"),
    ]  # fmt: skip
    for method, path, url in asked:
        status = str(service.request(method, url).status_code)
        assert status in paths[path][method.lower()]["responses"], (method, url, status)


def test_metrics_count_requests_by_route_and_not_by_customer(service: httpx.Client, filled: str) -> None:
    service.get("/v1/profiles/c1")
    service.get("/a/path/of/the/callers/own")
    text = service.get("/metrics").text
    assert 'limner_http_request_seconds_count{method="GET",route="/v1/profiles/{id}",status="200"}' in text
    assert 'limner_http_request_seconds_count{method="none",route="none",status="404"}' in text
    assert "callers" not in text
    assert "c1" not in text


def test_with_a_key_every_v1_route_asks_for_it(store: Store, broker: Broker, filled: str) -> None:
    with running(redis=store.url, kafka=broker.bootstrap, api_key=KEY, http_host="0.0.0.0") as (client, _):
        paths = client.get("/openapi.json").json()["paths"]
        for route in ROUTES:
            documented = paths[route.path][route.method.lower()]
            assert ("401" in documented["responses"]) == ("security" in documented) == route.path.startswith("/v1/")
            for path in (route.path, route.path.upper()):  # BlackSheep does not tell case apart
                answer = client.request(route.method, path.replace("{ID}", "c1").replace("{id}", "c1"))
                if route.path.startswith("/v1/"):
                    problem(answer, 401, "unauthorized", "Authorization")
                    assert answer.headers["www-authenticate"] == "Bearer"
                else:
                    assert answer.status_code == 200, path
        for wrong in (f"Bearer {KEY}x", "Bearer", f"Basic {KEY}", KEY, "Bearer \xe9"):
            answer = client.get("/v1/profiles/c1", headers=[(b"authorization", wrong.encode("latin-1"))])
            problem(answer, 401, "unauthorized", "Authorization")
        assert client.get("/v1/profiles/c1", headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_ready_names_what_is_missing_and_the_rest_keeps_serving(topics: dict[str, str]) -> None:
    with (
        Store.start() as store,
        Broker.start() as broker,
        running(redis=store.url, kafka=broker.bootstrap, **topics) as (client, _),
    ):
        assert client.get("/ready").json() == {"status": "ready"}
        broker.kill()
        assert problem(client.get("/ready"), 503, "not-ready")["missing"] == ["kafka"]
        assert client.get("/v1/profiles/nobody").status_code == 404
        store.kill()
        assert problem(client.get("/ready"), 503, "not-ready")["missing"] == ["redis", "kafka"]
        away = client.get("/v1/profiles/c1")
        assert "Redis at" in problem(away, 503, "store-unavailable")["detail"]
        assert int(away.headers["retry-after"]) > 0
        assert client.get("/health").json() == {"status": "alive"}
        store.restart()
        store.wait_answering()
        assert client.get("/v1/profiles/nobody").status_code == 404


def test_without_kafka_a_request_is_refused_in_time_even_while_the_service_stops(
    store: Store, topics: dict[str, str]
) -> None:
    """A broker that takes connections and says nothing; SIGTERM while the request waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kafka = f"127.0.0.1:{silent.getsockname()[1]}"
        with running(redis=store.url, kafka=kafka, **topics) as (client, process):
            answers: list[httpx.Response] = []
            thread = threading.Thread(target=lambda: answers.append(client.post("/v1/events", json=chat())))
            started = time.monotonic()
            thread.start()
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGTERM)
            thread.join(15)
            assert "Kafka at" in problem(answers[0], 503, "broker-unavailable")["detail"]
            assert int(answers[0].headers["retry-after"]) > 0
            assert time.monotonic() - started < 8
            ended(process)


def test_ctrl_c_ends_it(store: Store, broker: Broker, topics: dict[str, str]) -> None:
    with running(redis=store.url, kafka=broker.bootstrap, **topics) as (_, process):
        os.kill(process.pid, signal.SIGINT)
        ended(process)


def ended(process: Child) -> None:
    """It ended by itself with code 0, and nothing that it started is left."""
    deadline = time.monotonic() + 10
    while process.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.exit_code == 0
    with pytest.raises(ProcessLookupError):  # it had a process group of its own
        os.killpg(process.pid, 0)


# --- the command line -------------------------------------------------------------------------------


def limner(*args: str, **settings: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {f"LIMNER_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "streaming.cli", *args], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_off_loopback_without_a_key_is_wrong_use(tmp_path: Path) -> None:
    ran = limner("serve", http_host="0.0.0.0", http_port=0)
    assert ran.returncode == 2
    assert "LIMNER_API_KEY" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert limner("serve", "--host", "no.such.host.invalid").returncode == 2


def test_a_taken_port_is_named(service: httpx.Client) -> None:
    ran = limner("serve", "--port", str(service.base_url.port))
    assert ran.returncode == 1
    assert f"127.0.0.1:{service.base_url.port}" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_profile_shows_what_is_known(filled: str) -> None:
    ran = limner("profile", "c1", redis=filled)
    assert ran.returncode == 0
    label = next(line for line in ran.stdout.splitlines() if "手机" in line)
    assert all(part in label for part in ("█", "0.86", "FRESH", "evidence 3", "from chat"))
    for part in ("chat 3, order 1", "+0.50", "1 placed", "GBP 12.50 spent", "S1", "red cup"):
        assert part in ran.stdout
    assert not {"\x1b", "\x07"} & set(ran.stdout)  # neither colours into a pipe nor a customer's own
    assert "e2, e1" not in ran.stdout
    assert "e2, e1" in limner("profile", "c1", "--explain", redis=filled).stdout


def test_profile_as_json_has_the_shape_of_http(filled: str, service: httpx.Client) -> None:
    printed = json.loads(limner("profile", "c1", "--json", redis=filled).stdout)
    served = service.get("/v1/profiles/c1").json()
    for body in (printed, served):  # a moment apart
        for label in body["labels"]:
            label["strength"] = round(label["strength"], 3)
        body["sentiment"] = round(body["sentiment"], 3)
    assert printed == served


def test_profile_fails_in_one_line(filled: str) -> None:
    unknown = limner("profile", "nobody", redis=filled)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "limner: no event of customer 'nobody' has been merged\n"
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        away = limner("profile", "c1", redis=f"redis://127.0.0.1:{refusing.getsockname()[1]}/0")
    assert (away.returncode, len(away.stderr.splitlines())) == (1, 1)
    assert "Redis at" in away.stderr
    assert limner("profile", "a{b", redis=filled).returncode == 2


def test_responses_decode_as_the_types_that_openapi_publishes(service: httpx.Client, filled: str) -> None:
    answers = {
        "get_profile": service.get("/v1/profiles/c1"),
        "get_profiles": service.post("/v1/profiles:batch", json={"ids": ["c1", "no"]}),
        "get_audience": service.get("/v1/audiences/interests/x"),
        "get_consent": service.get("/v1/profiles/c1/consent"),
        "get_erasures": service.get("/v1/profiles/c1/erasures"),
        "post_events": service.post("/v1/events", json=chat()),
        "get_health": service.get("/health"),
        "get_ready": service.get("/ready"),
    }
    for route in ROUTES:
        if (answer := answers.pop(route.handler.__name__, None)) is not None:
            assert answer.status_code == route.status
            whole = (*get_args(route.answer), route.answer)[0]  # of an answer with or without `fields`: with all
            msgspec.json.decode(answer.content, type=whole)
    assert not answers
