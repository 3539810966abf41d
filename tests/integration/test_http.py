"""What the HTTP service speaks: entity tags, fields, msgpack, compression, pages, ranks, streams, read-your-writes."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import log2
from typing import Any

import httpx
import msgpack
import pytest
import redis
import zstandard
from confluent_kafka import Consumer, TopicPartition

from streaming.client import tokens
from streaming.embedded.broker import Broker
from streaming.embedded.store import Store
from streaming.lookup.ingest import MAX_EVENTS
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from tests.serving import DAY, HALF_LIFE, chat, fresh_topics, order, problem, running, stored
from tests.stored import profile


@pytest.fixture(scope="module")
def topics(broker: Broker) -> dict[str, str]:
    return fresh_topics(broker)


@pytest.fixture(scope="module")
def service(store: Store, broker: Broker, topics: dict[str, str]) -> Iterator[httpx.Client]:
    with running(redis=store.url, kafka=broker.bootstrap, **topics) as (client, _):
        yield client


@pytest.fixture
def filled(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.set(profile_key("lm", "c1"), stored("c1", now()))
        client.hset(half_lives_key("lm"), mapping={"interests": HALF_LIFE, "risk": DAY, "sentiment": DAY})
        yield client


def now() -> int:
    return int(time.time() * 1000)


# --- entity tags ------------------------------------------------------------------------------------


def test_a_profile_known_by_its_tag_is_not_sent_again_until_it_changes(
    service: httpx.Client, filled: redis.Redis
) -> None:
    first = service.get("/v1/profiles/c1")
    tag = first.headers["etag"]
    again = service.get("/v1/profiles/c1", headers={"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert service.get("/v1/profiles/c1", headers={"if-none-match": "*"}).status_code == 304
    at = now() + 1
    filled.set(profile_key("lm", "c1"), stored("c1", at))
    changed = service.get("/v1/profiles/c1", headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["updated_ms"]) == (200, at)
    assert changed.headers["etag"] != tag
    assert changed.headers["cache-control"] == "private, no-cache"
    assert service.get("/v1/profiles/nobody", headers={"if-none-match": "*"}).status_code == 404


# --- fields -----------------------------------------------------------------------------------------


def test_fields_name_facets_and_parts(service: httpx.Client, filled: redis.Redis) -> None:
    body = service.get("/v1/profiles/c1?fields=interests, orders").json()
    assert {label["facet"] for label in body["labels"]} == {"interests"}
    assert set(body) == {"customer_id", "updated_ms", "version", "labels", "orders"}
    assert body["orders"]["placed"] == 1
    feelings = service.get("/v1/profiles/c1?fields=sentiment").json()
    assert feelings["sentiment"] == pytest.approx(0.5, abs=1e-3)
    assert {label["facet"] for label in feelings["labels"]} == {"sentiment"}
    whole = service.get("/v1/profiles/c1").json()
    assert {label["label"] for label in service.get("/v1/profiles/c1?fields=labels").json()["labels"]} == {
        label["label"] for label in whole["labels"]
    }
    assert service.get("/v1/profiles/c1?fields=risk").json()["labels"] == []  # known, and not shown by this one
    named = problem(service.get("/v1/profiles/c1?fields=intrests"), 400, "invalid-argument", "fields")
    assert "interests" in named["detail"]


def test_fields_of_a_batch(service: httpx.Client, filled: redis.Redis) -> None:
    found = service.post("/v1/profiles:batch", json={"ids": ["c1", "no"], "fields": ["events"]}).json()["profiles"]
    assert found["no"] is None
    assert set(found["c1"]) == {"customer_id", "updated_ms", "version", "events"}
    problem(service.post("/v1/profiles:batch", json={"ids": [], "fields": ["x"]}), 400, "invalid-argument", "fields")


# --- linked ids -------------------------------------------------------------------------------------


def test_linked_ids_are_read_and_streamed_as_one_person(service: httpx.Client, filled: redis.Redis) -> None:
    def write(id_: str, other: str, at: int) -> None:
        sources = {"chat": {"n": 2, "t": at}}
        filled.set(profile_key("lm", id_), profile(id_, at, sources, i={other: [True, at, "w"]}))

    at = now()
    write("web", "app", at)
    write("app", "web", at)
    body = service.get("/v1/profiles/web").json()
    assert (body["customer_id"], body["events"], body["linked"]) == ("web", {"chat": 4}, ["app"])
    batch = service.post("/v1/profiles:batch", json={"ids": ["web", "c1"]}).json()["profiles"]
    assert batch["web"]["events"] == {"chat": 4}
    token = tokens.encode(tokens.Token("app", "t", 0, 7))
    assert service.get("/v1/profiles/web", params={"at_least": token}).status_code == 200
    with stream(service, "/v1/profiles/web/changes") as it:
        it.wait(1)
        time.sleep(0.3)
        write("app", "web", at + 5)
        assert it.wait(2)[1][1]["updated_ms"] == at + 5


# --- representations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/msgpack", "application/msgpack"),
        ("application/x-msgpack, application/json;q=0.9", "application/msgpack"),
        ("application/json, application/msgpack", "application/json"),
        ("application/msgpack;q=0.1, */*", "application/json"),
        ("text/html", "application/json"),
        ("application/msgpack;q=x", "application/json"),
    ],
)
def test_accept_chooses_json_or_msgpack(service: httpx.Client, filled: redis.Redis, accept: str, expected: str) -> None:
    answer = service.get("/v1/profiles/c1", headers={"accept": accept})
    assert answer.headers["content-type"] == expected
    assert "Accept" in answer.headers["vary"]
    read: Any = msgpack.unpackb(answer.content) if expected.endswith("msgpack") else answer.json()
    assert (read["customer_id"], read["orders"]["money"]["GBP"]["spent"]) == ("c1", "12.5000")


def test_bodies_may_be_msgpack(service: httpx.Client, filled: redis.Redis) -> None:
    sent = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    answer = service.post("/v1/profiles:batch", content=msgpack.packb({"ids": ["c1"]}), headers=sent)
    assert msgpack.unpackb(answer.content)["profiles"]["c1"]["customer_id"] == "c1"
    problem(service.post("/v1/profiles:batch", content=b"\xc1", headers=sent), 400, "malformed-body")
    problem(service.post("/v1/profiles:batch", content=msgpack.packb({"ids": [7]}), headers=sent), 422, "invalid-body",
            "ids[0]")  # fmt: skip
    deep = b'{"event_id": "d", "x": ' + b"[" * 100_000
    problem(service.post("/v1/events", content=deep, headers={"content-type": "application/json"}), 400,
            "malformed-body")  # fmt: skip
    squeezed = {"content-type": "application/json", "content-encoding": "gzip"}
    refused = service.post("/v1/profiles:batch", content=gzip.compress(b'{"ids": []}'), headers=squeezed)
    problem(refused, 415, "unsupported-media-type", "Content-Encoding")


def test_large_answers_are_compressed_as_asked_and_small_ones_are_not(
    service: httpx.Client, filled: redis.Redis
) -> None:
    ids = [f"d{number}" for number in range(200)]
    filled.mset({profile_key("lm", id_): stored(id_, now()) for id_ in ids})
    plain: dict[str, Any] = {}
    decoders = {"gzip": gzip.decompress, "zstd": lambda data: zstandard.ZstdDecompressor().decompress(data)}
    for asked, coding in (("", None), ("gzip, deflate", "gzip"), ("gzip, zstd", "zstd"), ("identity, gzip;q=0", None)):
        request = service.build_request(
            "POST", "/v1/profiles:batch", json={"ids": ids}, headers={"accept-encoding": asked}
        )
        answer = service.send(request, stream=True)
        raw = b"".join(answer.iter_raw())
        assert answer.headers.get("content-encoding") == coding
        body = json.loads(decoders[coding](raw) if coding else raw)
        assert set(body["profiles"]) == set(ids)
        plain[asked] = len(raw)
        small = service.get("/v1/profiles/c1", headers={"accept-encoding": asked})
        assert "content-encoding" not in small.headers
    assert plain["gzip, deflate"] < plain[""] / 4
    assert plain["gzip, zstd"] < plain[""] / 4


# --- audiences, ranks, explanations -----------------------------------------------------------------


def test_pages_of_an_audience_meet_and_end(service: httpx.Client, filled: redis.Redis) -> None:
    key, at = audience_key("lm", "interests", "tea"), now()
    scores = {f"m{n:03}": log2(0.05 + (n // 2) / 40) + at / HALF_LIFE for n in range(100)}  # pairs of equal score
    filled.zadd(key, scores)
    path = "/v1/audiences/interests/tea"
    whole = service.get(path, params={"limit": 1000}).json()
    assert (len(whole["members"]), whole["next"]) == (100, None)

    def walk(**more: Any) -> list[str]:
        members: list[str] = []
        cursor = None
        while True:
            page = service.get(path, params={"limit": 7, **({"cursor": cursor} if cursor else {}), **more}).json()
            members += [member["customer_id"] for member in page["members"]]
            cursor = page["next"]
            if cursor is None:
                return members

    assert walk() == [member["customer_id"] for member in whole["members"]]
    strong = [member["customer_id"] for member in whole["members"] if member["strength"] >= 0.5]
    assert 0 < len(strong) < 100
    assert walk(min_strength=0.5) == strong

    first = service.get(path, params={"limit": 51}).json()  # ends between two of equal score
    filled.zrem(key, first["members"][-1]["customer_id"])  # erased meanwhile: nobody is passed over
    rest = service.get(path, params={"limit": 100, "cursor": first["next"]}).json()["members"]
    assert [member["customer_id"] for member in rest] == [member["customer_id"] for member in whole["members"][51:]]
    for wrong in ("x", "AAAA", first["next"][:-1]):
        problem(service.get(path, params={"cursor": wrong}), 400, "invalid-argument", "cursor")


def test_candidates_are_ranked_by_the_profile_with_reasons(service: httpx.Client, filled: redis.Redis) -> None:
    strength = {
        f"{label['facet']}/{label['label']}": label["strength"]
        for label in service.get("/v1/profiles/c1").json()["labels"]
    }
    candidates = [
        {"id": "none", "labels": {"interests/boats": 3}},
        {"id": "phone", "labels": {"interests/手机": 1, "interests/boats": 1}},
        {"id": "gloom", "labels": {"sentiment/positive": -1}},
        {"id": "both", "labels": {"interests/手机": 1, "sentiment/positive": 0.1}},
        {"id": "same", "labels": {}},
    ]
    asked = {"customer_id": "c1", "candidates": candidates}
    ranked = service.post("/v1/rank", json=asked).json()["ranked"]
    assert [it["id"] for it in ranked] == ["both", "phone", "none", "same", "gloom"]
    assert ranked[1]["score"] == pytest.approx(strength["interests/手机"], abs=1e-3)
    assert [reason["label"] for reason in ranked[0]["reasons"]] == ["interests/手机", "sentiment/positive"]
    assert ranked[0]["reasons"][1]["contribution"] == pytest.approx(0.1 * strength["sentiment/positive"], abs=1e-3)
    assert ranked[2]["reasons"] == []
    assert len(service.post("/v1/rank", json=asked | {"limit": 2}).json()["ranked"]) == 2
    many = [{"id": str(n), "labels": {"interests/手机": n}} for n in range(1000)]
    best = service.post("/v1/rank", json={"customer_id": "c1", "candidates": many, "limit": 1}).json()["ranked"]
    assert best[0]["id"] == "999"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"candidates": []}, "candidates"),
        ({"candidates": [{"id": "x", "labels": {}}] * 1001}, "candidates"),
        ({"candidates": [{"id": "x", "labels": {"a/b": "c"}}]}, "candidates[0].labels[...]"),
        ({"candidates": [{"id": "x", "labels": {"a/b": 1e7}}]}, "candidates[0].labels[...]"),
        ({"customer_id": "{"}, "customer_id"),
    ],
)
def test_a_wrong_rank_is_named(service: httpx.Client, change: dict[str, Any], field: str) -> None:
    asked = {"customer_id": "c1", "candidates": [{"id": "x", "labels": {}}]} | change
    problem(service.post("/v1/rank", json=asked), 422, "invalid-body", field)


def test_a_rank_for_nobody_is_404(service: httpx.Client, filled: redis.Redis) -> None:
    asked = {"customer_id": "nobody", "candidates": [{"id": "x", "labels": {}}]}
    problem(service.post("/v1/rank", json=asked), 404, "unknown-customer", "customer_id")


def test_an_explanation_accounts_for_each_strength(service: httpx.Client, filled: redis.Redis) -> None:
    at = now()
    old = at - HALF_LIFE
    sources = {
        "chat": {"n": 2, "t": at, "l": {"interests": [HALF_LIFE, {"tea": [1.0, old, 2, "m1", ["e1", "e2"]]}]}},
        "order": {"n": 1, "t": at, "l": {"interests": [HALF_LIFE, {"tea": [0.25, at, 1, "m2", ["o1"]]}]}},
    }
    filled.set(profile_key("lm", "c2"), profile("c2", at, sources))
    body = service.get("/v1/profiles/c2/explain").json()
    (label,) = body["labels"]
    first, second = label["sources"]
    assert (first["source"], first["event_ids"], first["model"], first["evidence"]) == ("chat", ["e2", "e1"], "m1", 2)
    assert first["weight_now"] == pytest.approx(0.5, abs=1e-3)
    assert (second["source"], second["weight"]) == ("order", 0.25)
    total = first["weight_now"] + second["weight_now"]
    assert label["strength"] == pytest.approx(1 - 2.718281828**-total, abs=1e-6)
    assert (label["half_life_ms"], body["merged"]) == (HALF_LIFE, {"t/0/e": 7})
    problem(service.get("/v1/profiles/nobody/explain"), 404, "unknown-customer", "id")


# --- streams of changes -----------------------------------------------------------------------------


class Stream:
    """Events of a stream as they come: (event, data)."""

    def __init__(self, client: httpx.Client, path: str, **headers: str) -> None:
        self.events: list[tuple[str, Any]] = []
        self.ids: list[str] = []
        self._ready = threading.Event()
        self._client = client
        self._path = path
        self._headers = headers
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _read(self) -> None:
        try:
            with self._client.stream("GET", self._path, headers=self._headers, timeout=30) as answer:
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "text/event-stream"
                self._answer = answer
                self._ready.set()
                event = ""
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        self.ids.append(line[4:])
                    if line.startswith("event: "):
                        event = line[7:]
                    if line.startswith("data: "):
                        self.events.append((event, json.loads(line[6:])))
        except (httpx.HTTPError, OSError, RuntimeError):  # closed, here or there
            pass

    def wait(self, count: int, timeout_s: float = 10) -> list[tuple[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while len(self.events) < count:
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)
        return self.events


@contextmanager
def stream(service: httpx.Client, path: str, **headers: str) -> Iterator[Stream]:
    with httpx.Client(base_url=service.base_url) as own:
        yield Stream(own, path, **headers)


def test_a_profile_is_streamed_as_it_changes(service: httpx.Client, filled: redis.Redis) -> None:
    key = profile_key("lm", "c1")
    with stream(service, "/v1/profiles/c1/changes?fields=events") as it:
        assert it.wait(1)[0][0] == "profile"
        assert set(it.events[0][1]) == {"customer_id", "updated_ms", "version", "events"}
        for round_ in range(1, 4):
            at = now() + round_
            started = time.monotonic()
            filled.set(key, stored("c1", at))
            assert it.wait(1 + round_)[-1][1]["updated_ms"] == at
            assert time.monotonic() - started < 1.0
        filled.delete(key)
        assert it.wait(5)[-1] == ("erased", {"customer_id": "c1"})
        filled.set(key, stored("c1", 5))
        assert it.wait(6)[-1][1]["updated_ms"] == 5
        last = it.ids[-1]
    with stream(service, "/v1/profiles/c1/changes", **{"last-event-id": last}) as it:
        time.sleep(0.3)
        assert it.events == []  # has been seen
        filled.set(key, stored("c1", 6))
        assert it.wait(1)[0][1]["updated_ms"] == 6


def test_a_stream_may_wait_for_a_customers_first_event(service: httpx.Client, filled: redis.Redis) -> None:
    with stream(service, "/v1/profiles/new/changes") as it:
        time.sleep(0.3)
        assert it.events == []
        filled.set(profile_key("lm", "new"), stored("new", now()))
        assert it.wait(1)[0][1]["customer_id"] == "new"


def test_an_audience_is_streamed_as_members_come_and_go(service: httpx.Client, filled: redis.Redis) -> None:
    key, at = audience_key("lm", "interests", "tea"), now() / HALF_LIFE
    filled.zadd(key, {"a": at + 1, "b": at})
    with stream(service, "/v1/audiences/interests/tea/changes?limit=2") as it:
        first = it.wait(1)[0]
        assert (first[0], [m["customer_id"] for m in first[1]["entered"]], first[1]["left"]) == (
            "audience",
            ["a", "b"],
            [],
        )
        filled.zadd(key, {"c": at + 2})
        change = it.wait(2)[1][1]
        assert ([m["customer_id"] for m in change["entered"]], change["left"]) == (["c"], ["b"])
        filled.zadd(key, {"a": at + 3})  # the same customers in another order
        filled.zrem(key, "c")
        change = it.wait(3)[2][1]
        assert ([m["customer_id"] for m in change["entered"]], change["left"]) == (["b"], ["c"])
    problem(service.get("/v1/audiences/hobbies/tea/changes"), 404, "unknown-facet", "facet")


def test_a_stream_outlives_a_restart_of_redis_and_the_service_stops_with_streams_open(
    broker: Broker, topics: dict[str, str]
) -> None:
    with Store.start() as store, running(redis=store.url, kafka=broker.bootstrap, **topics) as (client, process):
        with redis.Redis.from_url(store.url) as direct:
            direct.set(profile_key("lm", "c1"), stored("c1", 1))
        with stream(client, "/v1/profiles/c1/changes") as it:
            it.wait(1)
            store.restart()
            store.wait_answering()
            with redis.Redis.from_url(store.url) as direct:
                direct.set(profile_key("lm", "c1"), stored("c1", 2))
                deadline = time.monotonic() + 10
                while not any(data.get("updated_ms") == 2 for _, data in it.events):
                    assert time.monotonic() < deadline, it.events
                    time.sleep(0.01)
                time.sleep(2.5)  # notices are back, after a second's pause
                started = time.monotonic()
                direct.set(profile_key("lm", "c1"), stored("c1", 3))
                while it.events[-1][1].get("updated_ms") != 3:
                    assert time.monotonic() - started < 0.5, it.events
                    time.sleep(0.01)
            started = time.monotonic()
            process.stop()
            assert time.monotonic() - started < 5
            assert process.exit_code == 0


def test_without_the_right_to_notices_a_stream_looks_by_itself(
    filled: redis.Redis, store: Store, broker: Broker, topics: dict[str, str]
) -> None:
    filled.acl_setuser("weak", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-client|tracking"])
    url = store.url.replace("redis://", "redis://weak:pw@")
    with (
        running(redis=url, kafka=broker.bootstrap, **topics) as (client, _),
        stream(client, "/v1/profiles/c1/changes") as it,
    ):
        it.wait(1)
        for round_ in range(1, 4):
            filled.set(profile_key("lm", "c1"), stored("c1", round_))
            assert it.wait(1 + round_)[-1][1]["updated_ms"] == round_
    filled.acl_deluser("weak")


# --- read your writes -------------------------------------------------------------------------------


def test_tokens_name_where_events_stand(service: httpx.Client, broker: Broker, topics: dict[str, str]) -> None:
    mixed = [chat(event_id="t1", customer_id="t"), {"event_id": "bad"}, order(event_id="t2", customer_id="t"),
             chat(event_id="t3", customer_id="t")]  # fmt: skip
    body = service.post("/v1/events", json={"events": mixed}).json()
    assert "token" not in body  # chats and orders: two topics
    assert "token" not in body["results"][1]
    for index, event_id in ((0, "t1"), (2, "t2"), (3, "t3")):
        token = tokens.decode(body["results"][index]["token"])
        assert token.customer_id == "t"
        assert json.loads(record(broker, token))["event_id"] == event_id

    chats = {"events": [chat(event_id=f"u{n}", customer_id="u") for n in range(50)]}
    packed = {"content-type": "application/msgpack"}
    body = service.post("/v1/events", content=msgpack.packb(chats), headers=packed).json()
    assert body["token"] == body["results"][-1]["token"]
    assert msgpack.unpackb(record(broker, tokens.decode(body["token"])))["event_id"] == "u49"
    alone = service.post("/v1/events", json=chat(customer_id="u")).json()
    assert alone["token"] == alone["results"][0]["token"]
    several = {"events": [chat(customer_id="u"), chat(customer_id="v")]}
    assert "token" not in service.post("/v1/events", json=several).json()


def record(broker: Broker, token: tokens.Token) -> bytes:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "reader", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(token.topic, token.partition, token.offset)])
        message = consumer.poll(10)
        assert message is not None
        assert (message.error(), message.offset()) == (None, token.offset)
        return bytes(message.value())
    finally:
        consumer.close()


def test_a_look_up_waits_for_its_event(service: httpx.Client, filled: redis.Redis) -> None:
    token = tokens.encode(tokens.Token("c1", "t", 0, 8))  # the stored fence is at 7
    path = "/v1/profiles/c1"
    started = time.monotonic()
    late = problem(service.get(path, params={"at_least": token, "wait_ms": 200}), 504, "not-yet-visible", "at_least")
    assert 0.2 <= time.monotonic() - started < 1.0
    assert "t/0 offset 8" in late["detail"]
    assert service.get(path, params={"at_least": tokens.encode(tokens.Token("c1", "t", 0, 7))}).status_code == 200

    def arrive() -> None:
        time.sleep(0.3)
        filled.set(profile_key("lm", "c1"), stored("c1", now()).replace(b"t/0/e\x07", b"t/0/e\x08"))

    threading.Thread(target=arrive).start()
    started = time.monotonic()
    assert service.get(path, params={"at_least": token, "wait_ms": 5000}).status_code == 200
    assert 0.25 <= time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"at_least": "x"}, "at_least"),
        ({"at_least": tokens.encode(tokens.Token("c2", "t", 0, 7))}, "at_least"),
        ({"wait_ms": 10_001}, "wait_ms"),
        ({"wait_ms": -1}, "wait_ms"),
    ],
)
def test_a_wrong_token_or_wait_is_named(
    service: httpx.Client, filled: redis.Redis, query: dict[str, Any], field: str
) -> None:
    problem(service.get("/v1/profiles/c1", params=query), 400, "invalid-argument", field)


def test_many_who_wait_share_their_asking(service: httpx.Client, filled: redis.Redis) -> None:
    """A hundred waiting look-ups ask Redis not much more often than one would."""
    token = tokens.encode(tokens.Token("c1", "t", 0, 8))
    path = f"/v1/profiles/c1?at_least={token}&wait_ms=1000"
    before = filled.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(base_url=service.base_url, limits=limits, timeout=20) as client:
        threads = [threading.Thread(target=client.get, args=(path,)) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    asked = filled.info("commandstats")["cmdstat_mget"]["calls"] - before
    assert asked < 400, asked  # alone, each would ask some 40 times


def test_beyond_what_may_be_in_flight_events_are_refused_at_once(store: Store, topics: dict[str, str]) -> None:
    """A Kafka that never answers: what was let in fails in time, what came after is told to come again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kafka = f"127.0.0.1:{silent.getsockname()[1]}"
        with running(redis=store.url, kafka=kafka, **topics) as (client, _):
            answers: list[httpx.Response] = []
            body = {"events": [chat(event_id=f"f{n}") for n in range(1000)]}
            threads = [
                threading.Thread(target=lambda: answers.append(client.post("/v1/events", json=body)))
                for _ in range(MAX_EVENTS // 1000 + 2)
            ]
            for thread in threads:
                thread.start()
            time.sleep(2)
            refused = client.post("/v1/events", json=chat())
            problem(refused, 503, "busy")
            assert int(refused.headers["retry-after"]) > 0
            for thread in threads:
                thread.join()
            names = [answer.json()["type"].rpartition(":")[2] for answer in answers]
            assert names.count("broker-unavailable") == MAX_EVENTS // 1000
            assert names.count("busy") == 2
            problem(client.post("/v1/events", json={}), 422, "invalid-events")  # room again
