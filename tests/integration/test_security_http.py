"""The HTTP service as a caller without rights meets it: keys, tokens, TLS, limits, and what it lets nobody see."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec

from streaming.access import keys
from streaming.access.callers import SCOPES, Scope
from streaming.embedded.broker import Broker
from streaming.embedded.processes import free_port
from streaming.embedded.store import Store
from streaming.lookup.routes import ROUTES, Route
from streaming.profiles.keys import half_lives_key, profile_key
from tests.certificates import Authority
from tests.issuer import Issuer, public
from tests.serving import SERVE, problem, running
from tests.stored import profile

ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())


def make_key(path: Path, *scopes: Scope, **fields: object) -> str:
    with keys.changing(path) as entries:
        told = {"name": "test", "scopes": list(scopes), "namespace": "lm", **fields}
        key, entry = keys.generate({entry.id for entry in entries}, **told)
        entries.append(entry)
    return key


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def eventually(answer: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """A changed keys file is in force within a second; twice that for a busy machine, and no more than five."""
    deadline = time.monotonic() + 5
    while True:
        response = answer()
        if response.status_code == status or time.monotonic() > deadline:
            assert response.status_code == status, response.text
            return response
        time.sleep(0.05)


# --- keys and scopes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key_of(key_file: Path) -> dict[Scope, str]:
    return {scope: make_key(key_file, scope) for scope in SCOPES}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer([public(ISSUER_KEY, "k1")])
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def service(
    store: Store, broker: Broker, key_file: Path, key_of: dict[Scope, str], issuer: Issuer
) -> Iterator[httpx.Client]:
    with running(
        redis=store.url, kafka=broker.bootstrap, keys_file=key_file, api_key="the-one-key", http_host="0.0.0.0",
        oidc_issuer=issuer.url, oidc_audience="limner",
    ) as (client, _):  # fmt: skip
        yield client


def ask(service: httpx.Client, route: Route, headers: dict[str, str]) -> httpx.Response:
    """Of a stream, its head alone."""
    path = re.sub(r"\{\w+\}", "x", route.path)
    body = {} if route.method != "GET" else None
    with service.stream(route.method, path, headers=headers, json=body) as answer:
        if answer.headers["content-type"] != "text/event-stream":
            answer.read()
    return answer


@pytest.mark.parametrize("scope", sorted(SCOPES))
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_scope_opens_its_routes_and_no_others(
    service: httpx.Client, key_of: dict[Scope, str], route: Route, scope: Scope
) -> None:
    answer = ask(service, route, bearer(key_of[scope]))
    if route.scope in (None, scope):
        assert answer.status_code not in (401, 403), answer.text
    else:
        assert repr(route.scope) in problem(answer, 403, "missing-scope")["detail"]
        assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{route.scope}"'


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_without_a_key_only_routes_without_a_scope_answer(service: httpx.Client, route: Route) -> None:
    for headers in ({}, bearer("lmk_00000000_x")):
        answer = ask(service, route, headers)
        if route.scope is None:
            assert answer.status_code not in (401, 403)
        else:
            problem(answer, 401, "unauthorized", "Authorization")
            expected = 'Bearer error="invalid_token"' if headers else "Bearer"
            assert answer.headers["www-authenticate"] == expected


def test_every_route_of_the_api_has_a_scope() -> None:
    assert [route.path for route in ROUTES if route.path.startswith("/v1/") and route.scope is None] == []
    assert {route.scope for route in ROUTES} <= {None, *SCOPES}


def test_keys_are_made_rotated_and_revoked_under_a_running_service(service: httpx.Client, key_file: Path) -> None:
    def limner(*args: str) -> str:
        argv = [sys.executable, "-m", "streaming.cli", "keys", "--file", str(key_file), *args]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def look(key: str) -> httpx.Response:
        return service.get("/v1/profiles/x", headers=bearer(key))

    old = limner("add", "recommendations", "--scope", "read")
    eventually(lambda: look(old), 404)
    new = limner("rotate", old.split("_")[1], "--overlap", "0h")
    eventually(lambda: look(new), 404)
    assert "expired" in problem(look(old), 401, "unauthorized", "Authorization")["detail"]
    limner("revoke", new.split("_")[1])
    assert "revoked" in problem(eventually(lambda: look(new), 401), 401, "unauthorized", "Authorization")["detail"]


def test_a_key_of_another_namespace_reads_nothing_here(service: httpx.Client, key_file: Path) -> None:
    key = make_key(key_file, *SCOPES, namespace="north")
    answer = eventually(lambda: service.get("/v1/profiles/x", headers=bearer(key)), 403)
    assert "'north'" in problem(answer, 403, "wrong-namespace")["detail"]


def test_a_caller_beyond_its_rate_is_told_when_to_come_back(service: httpx.Client, key_file: Path) -> None:
    key, other = make_key(key_file, "read", rate=2), make_key(key_file, "read")
    eventually(lambda: service.get("/v1/profiles/x", headers=bearer(other)), 404)
    answers = [service.get("/v1/profiles/x", headers=bearer(key)) for _ in range(6)]
    assert [answer.status_code for answer in answers[:2]] == [404, 404]
    refused = answers[-1]
    problem(refused, 429, "rate-limited")
    assert service.get("/v1/profiles/x", headers=bearer(other)).status_code == 404
    time.sleep(int(refused.headers["retry-after"]))
    assert service.get("/v1/profiles/x", headers=bearer(key)).status_code == 404
    # What a key may not do costs it as much.
    codes = {service.post("/v1/events", headers=bearer(key), json={}).status_code for _ in range(6)}
    assert codes == {403, 429}


def test_the_one_key_of_the_settings_still_opens_everything(service: httpx.Client) -> None:
    for route in ROUTES:
        assert ask(service, route, bearer("the-one-key")).status_code not in (401, 403)


def test_tokens_of_the_issuer_are_taken(service: httpx.Client, issuer: Issuer) -> None:
    def look(algorithm: str = "ES256", key: Any = ISSUER_KEY, **fields: Any) -> httpx.Response:
        claims = {"iss": issuer.url, "aud": "limner", "sub": "s", "exp": int(time.time()) + 60, "scope": "read"}
        token = jwt.encode({**claims, **fields}, key, algorithm, headers={"kid": "k1"})
        return service.get("/v1/profiles/x", headers=bearer(token))

    assert look().status_code == 404
    problem(look(scope="ingest"), 403, "missing-scope")
    assert "expired" in problem(look(exp=int(time.time()) - 60), 401, "unauthorized", "Authorization")["detail"]
    problem(look(aud="other"), 401, "unauthorized", "Authorization")
    problem(look(algorithm="none", key=None), 401, "unauthorized", "Authorization")
    problem(look(key=ec.generate_private_key(ec.SECP256R1())), 401, "unauthorized", "Authorization")


def test_an_issuer_that_is_away_is_503(store: Store, broker: Broker) -> None:
    with running(
        redis=store.url, kafka=broker.bootstrap, oidc_issuer=f"http://127.0.0.1:{free_port()}", oidc_audience="a"
    ) as (client, _):
        token = jwt.encode({"iss": "i"}, ISSUER_KEY, "ES256", headers={"kid": "k1"})
        answer = client.get("/v1/profiles/x", headers=bearer(token))
        problem(answer, 503, "issuer-unavailable")
        assert int(answer.headers["retry-after"]) > 0


# --- without keys -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_service(store: Store, broker: Broker) -> Iterator[httpx.Client]:
    with running(redis=store.url, kafka=broker.bootstrap) as (client, _):
        yield client


def test_without_keys_only_this_machine_by_its_own_names_is_served(open_service: httpx.Client) -> None:
    port = open_service.base_url.port
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert open_service.get("/v1/profiles/x", headers={"host": host}).status_code == 404, host
    for host in ("shop.example", f"rebound.example:{port}", "", "localhost.shop.example", "127.0.0.1.nip.example"):
        problem(open_service.get("/v1/profiles/x", headers={"host": host}), 403, "not-this-host")


@pytest.mark.parametrize("more", [{}, {"http_client_ca": True}])
def test_off_loopback_without_keys_it_does_not_start(tmp_path: Path, more: dict[str, bool]) -> None:
    """Not with callers' certificates either: they say who, not what they may do."""
    settings: dict[str, object] = {"http_host": "0.0.0.0", "http_port": 0}
    if more:
        authority = Authority(tmp_path)
        pair = authority.sign("service")
        settings |= {"http_cert": pair.cert, "http_key": pair.key, "http_client_ca": authority.cert}
    done = failing(**settings)
    assert done.returncode == 2
    assert "LIMNER_KEYS_FILE" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keys_file": "/absent/keys.json"}, "limner keys add"),
        ({"http_cert": "{key}", "http_key": "{key}"}, "http_cert"),
        ({"http_cert": "{cert}", "http_key": "{other}"}, "http_key"),
    ],
)
def test_what_can_not_be_used_is_named_at_the_start(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    authority = Authority(tmp_path)
    one, other = authority.sign("one"), authority.sign("other")
    paths = {"cert": one.cert, "key": one.key, "other": other.key}
    done = failing(**{name: value.format(**paths) for name, value in settings.items()})
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def failing(**settings: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {f"LIMNER_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(SERVE, env=env, capture_output=True, text=True, timeout=60, check=False)


# --- TLS --------------------------------------------------------------------------------------------


def test_https_and_nothing_else_once_there_is_a_certificate(store: Store, broker: Broker, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    pair, client_pair, other_pair = authority.sign("service"), authority.sign("client"), stranger.sign("other")
    trusting = ssl.create_default_context(cafile=str(authority.cert))
    tls = {"redis": store.url, "kafka": broker.bootstrap, "http_cert": pair.cert, "http_key": pair.key}
    with running(verify=trusting, **tls) as (client, _):
        port = client.base_url.port or 0
        assert client.get("/v1/profiles/x").status_code == 404
        assert "max-age" in client.get("/health").headers["strict-transport-security"]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://127.0.0.1:{port}/health", verify=ssl.create_default_context())
        old = ssl.create_default_context(cafile=str(authority.cert))
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{port}/health", verify=old)

    showing = ssl.create_default_context(cafile=str(authority.cert))
    showing.load_cert_chain(client_pair.cert, client_pair.key)
    strange = ssl.create_default_context(cafile=str(authority.cert))
    strange.load_cert_chain(other_pair.cert, other_pair.key)
    with running(verify=showing, http_client_ca=authority.cert, **tls) as (client, _):
        port = client.base_url.port or 0
        assert client.get("/v1/profiles/x").status_code == 404
        for context in (trusting, strange):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"https://127.0.0.1:{port}/health", verify=context)


# --- limits and headers -----------------------------------------------------------------------------

# The service with shorter patience, so that the test needs not wait for what it has.
IMPATIENT = [
    sys.executable,
    "-c",
    "from streaming.access import edge; from streaming.lookup import server; from streaming import logs, settings; "
    "edge.BODY_S = server.HEADER_S = 1.0; s = settings.load(); logs.configure(s); server.serve(s)",
]


def test_slow_callers_lose_their_connection_and_hold_up_nobody(store: Store, broker: Broker) -> None:
    with running(IMPATIENT, redis=store.url, kafka=broker.bootstrap) as (client, _):
        port = client.base_url.port or 0

        def connect(sent: bytes) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.sendall(sent)
            return connection

        head = (
            b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        )
        silent = [connect(b"") for _ in range(300)]
        half = [connect(head) for _ in range(300)]
        started = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{port}/v1/profiles/x").status_code == 404
        assert time.monotonic() - started < 0.9  # it did not wait for them to be thrown out
        slow = connect(head + b"\r\n{")
        trickle = connect(head + b"\r\n")
        dripping = threading.Thread(target=drip, args=(trickle,))
        dripping.start()
        for connection in (silent[0], silent[-1], half[0], half[-1]):
            assert connection.recv(100) == b""
        for connection in (slow, trickle):
            answer = b"".join(iter(lambda it=connection: it.recv(4096), b""))  # type: ignore[misc]
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body-too-slow" in answer
        assert time.monotonic() - started < 5
        dripping.join()
        for connection in (*silent, *half, slow, trickle):
            connection.close()


def test_a_stream_of_changes_has_no_end_though_bodies_have(store: Store, broker: Broker) -> None:
    with (
        running(IMPATIENT, redis=store.url, kafka=broker.bootstrap) as (client, _),
        client.stream("GET", "/v1/profiles/nobody/changes", timeout=2.5) as stream,
    ):
        parts = stream.iter_bytes()
        assert next(parts).startswith(b"retry:")
        with pytest.raises(httpx.ReadTimeout):  # it waits for a change, and is not at its end
            next(parts)


def drip(connection: socket.socket) -> None:
    """A byte now and then: never silent for long, and never done."""
    try:
        for _ in range(50):
            connection.sendall(b" ")
            time.sleep(0.1)
    except OSError:
        pass


def raw(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        try:
            return b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionResetError:  # it had not read all that was sent
            return b""


def test_headers_have_a_limit(open_service: httpx.Client) -> None:
    port = open_service.base_url.port or 0
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert raw(port, head + b"X: " + b"x" * 16_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    for many in (b"X: " + b"x" * 200_000 + b"\r\n", b"X: x\r\n" * 200):
        assert not raw(port, head + many + b"\r\n").startswith(b"HTTP/1.1 200")
    assert not raw(port, b"GET /health?" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    assert open_service.get("/health").status_code == 200


def test_a_caller_that_hangs_up_is_no_fault_of_the_service(store: Store, broker: Broker) -> None:
    with running(redis=store.url, kafka=broker.bootstrap) as (client, process):
        head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection:
            connection.sendall(head + b"Content-Length: 99\r\n\r\n{")
            time.sleep(0.2)
        counted = 'limner_http_request_seconds_count{method="POST",route="/v1/events",status="400"} 1.0'
        deadline = time.monotonic() + 5
        while counted not in client.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert counted in client.get("/metrics").text
        assert "Traceback" not in (process.folder / "log").read_text()


def test_a_body_is_not_read_for_who_may_not_send_it(service: httpx.Client) -> None:
    """The answer comes before the body does."""
    connection = http.client.HTTPConnection("127.0.0.1", service.base_url.port or 0, timeout=5)
    connection.putrequest("POST", "/v1/events")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/v1/profiles/x"), ("GET", "/v1/none"), ("PUT", "/v1/events"), ("GET", "/metrics"),
     ("OPTIONS", "/v1/events"), ("GET", "/openapi.json"), ("GET", "/%ff%00"), ("TRACE", "/health")],
)  # fmt: skip
def test_every_answer_is_closed_to_other_origins_and_says_nothing_of_the_server(
    open_service: httpx.Client, method: str, path: str
) -> None:
    asked = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    answer = open_service.request(method, path, headers=asked)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers.get_list("server") == ["limner"]
    assert not re.search(r"granian|blacksheep|hyper|python|uvloop", f"{answer.headers}{answer.text[:500]}".lower()) or (
        path == "/metrics"  # python_info is Prometheus' own, about the interpreter
    )


# --- audit ------------------------------------------------------------------------------------------


def test_who_reads_what_is_sensitive_is_recorded_or_gets_nothing(store: Store, broker: Broker, tmp_path: Path) -> None:
    now = int(time.time() * 1000)
    labels = {"x": [2, now, 1, "m1", ["e1"]]}
    with redis.Redis.from_url(store.url) as client:
        for customer_id, facet in (("plain", "interests"), ("delicate", "risk")):
            chats = {"n": 1, "t": now, "l": {facet: [86_400_000, labels]}}
            client.set(profile_key("audited", customer_id), profile(customer_id, now, {"chat": chats}))
            client.hset(half_lives_key("audited"), facet, "86400000")
    path, key_file = tmp_path / "audit.jsonl", tmp_path / "keys.json"
    key = make_key(key_file, "read", namespace="audited")
    with running(
        redis=store.url, kafka=broker.bootstrap, keys_file=key_file, namespace="audited", audit_file=path,
        audit_hash_key="k",
    ) as (service, _):  # fmt: skip
        service.headers.update(bearer(key))
        assert service.get("/v1/profiles/plain").status_code == 200
        assert service.get("/v1/audiences/interests/x").status_code == 200
        assert service.get("/v1/profiles/delicate?fields=orders").status_code == 200
        assert service.get("/v1/profiles/unknown").status_code == 404
        assert not path.exists()
        rank = {"customer_id": "delicate", "candidates": [{"id": "a", "labels": {"risk/x": 1.0}}]}
        reads: list[tuple[str, dict[str, Any]]] = [
            ("/v1/profiles/delicate", {}), ("/v1/profiles/delicate", {}), ("/v1/profiles/delicate/explain", {}),
            ("/v1/profiles:batch", {"json": {"ids": ["plain", "delicate"]}}), ("/v1/rank", {"json": rank}),
            ("/v1/audiences/risk/x", {}),
        ]  # fmt: skip
        for at, (url, body) in enumerate(reads):
            answer = service.request("POST" if body else "GET", url, **body)
            assert answer.status_code == 200, answer.text
            line = json.loads(path.read_text().splitlines()[at])
            assert (line["caller"], line["namespace"]) == (f"key:{key.split('_')[1]}", "audited")
            assert line.get("facet") == "risk" or (line["facets"] == ["risk"] and len(line["customers"]) == 1), line
        assert len(path.read_text().splitlines()) == len(reads)
        assert "delicate" not in path.read_text() and key not in path.read_text()
        path.unlink()
        path.mkdir()
        for url, body in reads:
            refused = service.request("POST" if body else "GET", url, **body)
            assert refused.status_code == 500, url
            assert "risk" not in refused.text.replace("audiences/risk", "")
        assert service.get("/v1/profiles/plain").status_code == 200


# --- secrets ----------------------------------------------------------------------------------------


def test_secrets_are_nowhere_to_be_read(store: Store, tmp_path: Path) -> None:
    """Wrong ones and right ones, in a service whose dependencies refuse it, at the loudest log."""
    key_file = tmp_path / "keys.json"
    key = make_key(key_file, "read")
    names = ("api_key", "redis", "kafka_password", "audit_hash_key", "receipt_key")
    secrets = {name: f"s3cret-{name}" for name in names}
    secrets |= {"sent": "lmk_00000000_s3cret-sent", "key": key.split("_", 2)[2]}
    with socket.create_server(("127.0.0.1", 0)) as closing:
        threading.Thread(target=refuse_all, args=(closing,), daemon=True).start()
        settings: dict[str, object] = {
            "api_key": secrets["api_key"], "keys_file": key_file, "audit_hash_key": secrets["audit_hash_key"],
            "receipt_key": secrets["receipt_key"],
            "redis": store.url.replace("redis://", f"redis://nobody:{secrets['redis']}@"),
            "kafka": f"127.0.0.1:{closing.getsockname()[1]}", "kafka_security": "SASL_PLAINTEXT", "kafka_user": "u",
            "kafka_password": secrets["kafka_password"], "log_level": "debug",
        }  # fmt: skip
        seen: dict[str, str] = {}
        with running(**settings) as (client, process):
            for given in (key, secrets["sent"], secrets["api_key"], secrets["api_key"] + "x"):
                answer = client.get("/v1/profiles/x", headers=bearer(given))
                seen[f"look-up with {given}"] = f"{answer.headers} {answer.text}"
            seen["ready"] = client.get("/ready").text
            seen["events"] = client.post(
                "/v1/events", headers=bearer(secrets["api_key"]), json={"event_id": "e", "customer_id": "c",
                "ts": "2026-01-02T03:04:05Z", "text": "x"},
            ).text  # fmt: skip
            seen["metrics"] = client.get("/metrics").text
            assert "invalid username-password" in seen[f"look-up with {key}"]  # the store did refuse it
            os.kill(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + 15
            while process.exit_code is None and time.monotonic() < deadline:
                time.sleep(0.05)
            seen["log"] = (process.folder / "log").read_text()
        assert "listening" in seen["log"]
        env = os.environ | {f"LIMNER_{name.upper()}": str(value) for name, value in settings.items()}
        wrong = env | {"LIMNER_REDIS": f"redis://:{secrets['redis']}@h:port/0", "LIMNER_KAFKA_SECURITY": "PLAINTEXT"}
        calls = [(args, env) for args in ("doctor", "doctor --settings", "keys list --json")]
        with ThreadPoolExecutor(2) as pool:
            for (args, _), output in zip(calls, pool.map(output_of, *zip(*calls, strict=True)), strict=True):
                seen[args] = output
        seen["doctor, wrong settings"] = output_of("doctor", wrong)
    found = {(name, where) for name, secret in secrets.items() for where, text in seen.items() if secret in text}
    assert found == set()
    assert "***" in seen["doctor --settings"]


def output_of(args: str, env: dict[str, str]) -> str:
    argv = [sys.executable, "-m", "streaming.cli", *args.split()]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def refuse_all(listening: socket.socket) -> None:
    while True:
        try:
            listening.accept()[0].close()
        except OSError:
            return
