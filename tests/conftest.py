"""Servers for tests: the embedded ones, and a real Apache Kafka where this machine has one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from streaming.embedded.broker import Broker
from streaming.embedded.processes import free_port, port_is_free
from streaming.embedded.store import Store

# A shell's background job ignores SIGINT, and its children inherit that: tests of Ctrl-C would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A folder whose program `kafka` starts and stops one: `kafka up DIR`, `kafka stop DIR`.
_BESIDE = Path(__file__).parents[2] / "shared" / "kafka"
KAFKA_HOME = Path(os.environ.get("KAFKA_HOME") or _BESIDE)
HAS_APACHE = (KAFKA_HOME / "kafka").is_file() and (shutil.which("java") or os.environ.get("JAVA_HOME")) is not None


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    with Broker.start() as running:
        yield running


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with Store.start() as running:
        yield running


@pytest.fixture
def redis_url(store: Store) -> str:
    """Of an empty store."""
    with redis.Redis.from_url(store.url) as client:
        client.flushall()
    return store.url


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap address of a real Apache Kafka that this session starts."""
    if not HAS_APACHE:
        pytest.skip("no Apache Kafka: set KAFKA_HOME (and have Java)")
    folder = tmp_path_factory.mktemp("kafka")
    port = free_port()
    while not port_is_free(port + 1):  # its controller's
        port = free_port()
    program = str(KAFKA_HOME / "kafka")
    try:
        started = subprocess.run(
            [program, "up", str(folder)], env={**os.environ, "KAFKA_PORT": str(port)}, check=True,
            stdout=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
        yield started.stdout.strip().splitlines()[-1]
    finally:
        subprocess.run([program, "stop", str(folder)], check=False, timeout=60)


@pytest.fixture(
    scope="session",
    params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)],
)
def any_kafka(request: pytest.FixtureRequest) -> str:
    """The bootstrap address of a broker: each test runs over the embedded one and over a real Kafka."""
    if request.param == "embedded":
        embedded: Broker = request.getfixturevalue("broker")
        return embedded.bootstrap
    address: str = request.getfixturevalue("apache_kafka")
    return address
