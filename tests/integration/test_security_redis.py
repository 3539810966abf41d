"""Redis that asks for users and TLS: limner's own processes with the rights of deploy/acl/redis.acl, and no more."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from streaming import doctor, kafka_admin
from streaming.client import ProfileClient
from streaming.embedded.broker import Broker
from streaming.embedded.processes import Child, StartFailed, free_port
from streaming.embedded.store import find_server
from streaming.errors import StoreUnavailable
from streaming.profiles.keys import half_lives_key, profile_key
from streaming.settings import load
from tests.certificates import Authority
from tests.chaos.history import environment, fresh_settings, start_worker

ACL = Path(__file__).parents[2] / "deploy" / "acl" / "redis.acl"
USERS = ("worker", "service", "reader")


def url_of(user: str, port: int) -> str:
    return f"redis://{user}:{user}-pw@127.0.0.1:{port}/0"


def tls_url(user: str, port: int, query: str) -> str:
    return f"{url_of(user, port).replace('redis', 'rediss', 1)}?{query}"


@pytest.fixture(scope="module")
def acl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped file with passwords, and one user more who may look at what was refused."""
    content = ACL.read_text()
    for user in USERS:
        content = content.replace(f"{user.upper()}_SHA256", hashlib.sha256(f"{user}-pw".encode()).hexdigest())
    path = tmp_path_factory.mktemp("acl") / "redis.acl"
    path.write_text(content + "user admin on >admin-pw ~* &* +@all\n")
    return path


def older_than_7_2(acl_file: Path, program: str) -> Path:
    """Redis before 7.2 does not know CLIENT SETINFO, and no file that names it: see deploy/README.md."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)\.(\d+)", told)
    assert version, told
    if (int(version[1]), int(version[2])) >= (7, 2):
        return acl_file
    path = acl_file.with_name("older.acl")
    path.write_text(acl_file.read_text().replace(" +client|setinfo", ""))
    return path


@contextmanager
def server(*more: str, program: str | None = None, within_s: float = 20) -> Iterator[int]:
    port = free_port()
    argv = [program or find_server(), "--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "noeviction", *more]
    if "--tls-port" in more:
        argv = [str(port) if it == "TLS_PORT" else it for it in argv]
    else:
        argv += ["--port", str(port)]
    with Child("redis", argv) as process:

        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        process.wait_ready(answers, within_s)
        yield port


@pytest.fixture(scope="module")
def guarded(acl_file: Path) -> Iterator[int]:
    with server("--aclfile", str(acl_file)) as port:
        yield port


def refused(port: int, user: str) -> list[str]:
    """What the server did not let a user do, and forgets it."""
    with redis.Redis.from_url(url_of("admin", port)) as admin:
        found = [str(entry["object"]) for entry in admin.acl_log() if entry["username"] == user]
        admin.acl_log_reset()
    return found


# --- users ------------------------------------------------------------------------------------------


def test_the_shipped_file_lets_nobody_in_before_passwords_are_set(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="ACL"), server("--aclfile", str(ACL)):
        pass


@contextmanager
def limner(broker: Broker, port: int, url: Callable[[str, int], str]) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    """A worker and a service, each as its user: the service's client, and the worker's settings as variables."""
    settings = fresh_settings(broker.bootstrap, url("worker", port)).model_copy(update={"namespace": "lm"})
    kafka_admin.ensure_topics(settings)
    http_port = free_port()
    told = environment(settings)
    service = told | {"LIMNER_REDIS": url("service", port), "LIMNER_HTTP_PORT": str(http_port)}
    with (
        start_worker(told),
        Child("service", [sys.executable, "-m", "streaming.cli", "serve"], env=service) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=20) as client,
    ):

        def answers() -> bool:
            try:
                return client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        process.wait_ready(answers, 60)
        yield client, told


def merged(client: httpx.Client, customer_id: str, number: int) -> dict[str, Any]:
    """A customer's profile after an event of theirs, by way of Kafka, worker and Redis."""
    event = {
        "event_id": f"e{number}",
        "customer_id": customer_id,
        "ts": int(time.time() * 1000),
        "text": f"hi {number}",
    }
    assert client.post("/v1/events", json=event).status_code == 202
    deadline = time.monotonic() + 30
    while True:
        answer = client.get(f"/v1/profiles/{customer_id}")
        if answer.status_code == 200 and answer.json()["events"]["chat"] >= number:
            found: dict[str, Any] = answer.json()
            return found
        assert answer.status_code in (200, 404), answer.text
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)


def test_worker_service_and_sdk_need_no_more_than_the_file_allows(broker: Broker, guarded: int) -> None:
    with limner(broker, guarded, url_of) as (client, of_worker):
        profile = [merged(client, "ada", number) for number in range(1, 9)][-1]
        label = profile["labels"][0]
        audience = f"/v1/audiences/{label['facet']}/{label['label']}"
        assert client.get(f"{audience}?limit=1").json()["members"][0]["customer_id"] == "ada"
        assert client.post("/v1/profiles:batch", json={"ids": ["ada", "bob"], "fields": ["orders"]}).status_code == 200
        assert client.get("/v1/profiles/ada/explain").status_code == 200
        rank = {"customer_id": "ada", "candidates": [{"id": "x", "labels": {"interests/i1": 1.0}}]}
        assert client.post("/v1/rank", json=rank).status_code == 200
        with client.stream("GET", "/v1/profiles/ada/changes") as stream:
            events = (line for line in stream.iter_lines() if line.startswith("event: profile"))
            assert next(events)
            merged(client, "ada", 9)
            assert next(events)
        for cache_mb in (0, 1):
            with ProfileClient(url_of("reader", guarded), cache_mb=cache_mb) as profiles:
                profiles.ping()
                assert profiles.get("ada") is not None
                assert profiles.get_many(["ada", "bob"])["bob"] is None
                assert profiles.audience(label["facet"], label["label"])
                time.sleep(0.2)
        for option in ("--yes", "--verify"):
            argv = [sys.executable, "-m", "streaming.cli", "erase", "ada", option, "--wait", "30"]
            done = subprocess.run(
                argv, env=os.environ | of_worker, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, (done.stderr, refused(guarded, "worker"))
        assert client.get("/v1/profiles/ada").status_code == 404
    assert {user: refused(guarded, user) for user in ("worker", "service")} == {"worker": [], "service": []}
    assert refused(guarded, "reader") == []
    check = doctor.check_store(load(redis=url_of("worker", guarded)))
    assert check.ok, check


@pytest.mark.parametrize("user", USERS)
def test_each_user_is_refused_what_it_does_not_need(guarded: int, user: str) -> None:
    mine = profile_key("lm", "eve")
    forbidden: list[tuple[Any, ...]] = [
        ("GET", "other:{eve}:p"), ("SET", "other:{eve}:p", "x"), ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"),
        ("CONFIG", "GET", "*"), ("CONFIG", "SET", "maxmemory", "1"), ("ACL", "LIST"), ("ACL", "SETUSER", user, "+@all"),
        ("SHUTDOWN",), ("REPLICAOF", "127.0.0.1", "1"), ("SAVE",), ("MONITOR",),
        ("CLIENT", "KILL", "TYPE", "normal"), ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"), ("MODULE", "LIST"),
        ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"), ("SUBSCRIBE", "c"), ("PUBLISH", "c", "m"), ("SWAPDB", "0", "1"),
        ("RENAME", mine, "lm:x"), ("SORT", mine), ("DUMP", mine), ("RESTORE", mine, 0, "x"),
    ]  # fmt: skip
    if user != "worker":
        forbidden += [
            ("SET", mine, "x"), ("DEL", mine), ("UNLINK", mine), ("EXPIRE", mine, 1), ("RPUSH", "lm:r", "x"),
            ("HSET", half_lives_key("lm"), "interests", "1"), ("ZADD", "lm:a:x", 1, "c"), ("ZREM", "lm:a:x", "c"),
            ("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, mine), ("EVALSHA", "0" * 40, 0),
            ("SCRIPT", "LOAD", "return 1"), ("SCAN", "0"),
        ]  # fmt: skip
    with redis.Redis.from_url(url_of(user, guarded)) as client:
        for command in forbidden:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
        if user == "worker":  # a script has its caller's rights
            for call in ("'FLUSHALL'", "'SET', 'other:x', 'x'", "'CONFIG', 'GET', '*'"):
                with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|ACL|not allowed"):
                    client.eval(f"redis.call({call})", 0)
    with redis.Redis.from_url(f"redis://127.0.0.1:{guarded}/0") as nobody, pytest.raises(redis.exceptions.RedisError):
        nobody.get(mine)


def test_a_wrong_password_is_named_and_not_shown(guarded: int) -> None:
    url = url_of("reader", guarded).replace("reader-pw", "s3cret")
    with ProfileClient(url) as profiles, pytest.raises(StoreUnavailable) as fault:
        profiles.get("ada")
    assert "invalid username-password" in str(fault.value)
    assert "s3cret" not in str(fault.value)


# --- TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=["terminator", "server"])
def tls(request: pytest.FixtureRequest, authority: Authority, acl_file: Path) -> Iterator[int]:
    """A port that demands TLS and a certificate of the authority's: of a server that was built with TLS, and of one
    with a terminator in front, as the embedded one is not."""
    pair = authority.sign(f"redis-{request.param}")
    if request.param == "server":
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            pytest.skip("no valkey-server or redis-server on the PATH")
        options = ["--port", "0", "--tls-port", "TLS_PORT", "--tls-cert-file", str(pair.cert), "--tls-key-file",
                   str(pair.key), "--tls-ca-cert-file", str(authority.cert)]  # fmt: skip
        options += ["--aclfile", str(older_than_7_2(acl_file, program))]
        probe = subprocess.run(
            [program, "--tls-port", "0", "--port", "bad"], capture_output=True, text=True, check=False
        )
        if "tls-port" in probe.stdout + probe.stderr:
            pytest.skip(f"{program} was built without TLS")
        with server(*options, program=program) as port:
            yield port
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        context.load_verify_locations(authority.cert)
        context.verify_mode = ssl.CERT_REQUIRED
        with server("--aclfile", str(acl_file)) as behind, terminating(context, behind) as port:
            yield port


@contextmanager
def terminating(context: ssl.SSLContext, behind: int) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=forward, args=(context, plain, behind), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        yield listening.getsockname()[1]


def forward(context: ssl.SSLContext, plain: socket.socket, behind: int) -> None:
    try:
        near = context.wrap_socket(plain, server_side=True)
        far = socket.create_connection(("127.0.0.1", behind))
    except OSError:
        plain.close()
        return

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=pump, args=(far, near), daemon=True).start()
    pump(near, far)
    near.close()
    far.close()


def test_worker_and_service_over_tls_with_client_certificates(broker: Broker, tls: int, authority: Authority) -> None:
    pair = authority.sign("limner")
    query = f"ssl_ca_certs={authority.cert}&ssl_certfile={pair.cert}&ssl_keyfile={pair.key}"
    with limner(broker, tls, lambda user, port: tls_url(user, port, query)) as (client, _):
        assert merged(client, "ada", 1)["events"] == {"chat": 1}
        with client.stream("GET", "/v1/profiles/ada/changes") as stream:
            events = (line for line in stream.iter_lines() if line.startswith("event: profile"))
            assert next(events)
            merged(client, "ada", 2)
            assert next(events)
    assert doctor.check_store(load(redis=tls_url("worker", tls, query))).ok


def test_tls_without_a_certificate_or_a_known_authority_fails(tls: int, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    pair = stranger.sign("stranger-client")
    known = f"ssl_ca_certs={authority.cert}"
    wrong = {
        "no certificate": known,
        "another authority's certificate": f"{known}&ssl_certfile={pair.cert}&ssl_keyfile={pair.key}",
        "server of another authority": f"ssl_ca_certs={stranger.cert}",
    }
    for name, query in wrong.items():
        with ProfileClient(tls_url("reader", tls, query), timeout_s=5) as profiles, pytest.raises(StoreUnavailable):
            profiles.get("ada")
        check = doctor.check_store(load(redis=tls_url("worker", tls, query)))
        assert not check.ok, name
        assert not re.search("-pw", str(check)), name
    with ProfileClient(url_of("reader", tls), timeout_s=2) as profiles, pytest.raises(StoreUnavailable):
        profiles.get("ada")
