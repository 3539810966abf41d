"""A real Kafka that asks for TLS and users: limner's processes with the rights of deploy/acl/kafka.sh, and no more."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from streaming import doctor, kafka_admin
from streaming.access.kafka import librdkafka_options
from streaming.embedded.processes import Child, free_port, port_is_free
from streaming.errors import BrokerUnavailable, SettingsError
from streaming.intake.producer import producer
from streaming.settings import Settings, load
from tests.certificates import Authority
from tests.chaos.history import fresh_settings, start_worker
from tests.conftest import HAS_APACHE, KAFKA_HOME

SCRIPT = Path(__file__).parents[2] / "deploy" / "acl" / "kafka.sh"
SILENT = logging.Logger("silent")  # refusals are what these tests are about
SILENT.addHandler(logging.NullHandler())
USERS = ("limner-worker", "limner-service", "limner-loader", "limner-trainer")

pytestmark = [pytest.mark.kafka, pytest.mark.skipif(not HAS_APACHE, reason="no Apache Kafka: set KAFKA_HOME")]


@dataclass(frozen=True)
class Guarded:
    """A broker that serves nobody without TLS and either a password or a certificate."""

    by_password: str
    by_certificate: str
    authority: Authority

    def settings(self, user: str, **more: Any) -> dict[str, Any]:
        """Of a user with a password; `admin` has the only one that is not SCRAM."""
        mechanism = "PLAIN" if user == "admin" else "SCRAM-SHA-512"
        told = {"kafka": self.by_password, "kafka_security": "SASL_SSL", "kafka_sasl": mechanism, "kafka_user": user,
                "kafka_password": f"{user}-pw", "kafka_ca": self.authority.cert}  # fmt: skip
        return {**told, **more}

    def certified(self, name: str) -> dict[str, Any]:
        pair = self.authority.sign(name)
        return {"kafka": self.by_certificate, "kafka_security": "SSL", "kafka_ca": self.authority.cert,
                "kafka_cert": pair.cert, "kafka_key": pair.key}  # fmt: skip

    @property
    def admin(self) -> AdminClient:
        return AdminClient(librdkafka_options(load(**self.settings("admin"))))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("kafka")
    authority = Authority(folder)
    pair = authority.sign("broker")
    (folder / "both.pem").write_bytes(pair.key.read_bytes() + pair.cert.read_bytes())
    port = free_port()
    while not all(map(port_is_free, range(port, port + 3))):
        port = free_port()
    running = Guarded(f"127.0.0.1:{port}", f"127.0.0.1:{port + 2}", authority)
    login = "org.apache.kafka.common.security"
    properties = f"""
listener.security.protocol.map=SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT
listeners=SASL_SSL://{running.by_password},SSL://{running.by_certificate},CONTROLLER://127.0.0.1:{port + 1}
advertised.listeners=SASL_SSL://{running.by_password},SSL://{running.by_certificate}
inter.broker.listener.name=SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={login}.plain.PlainLoginModule required username="admin" \
password="admin-pw" user_admin="admin-pw";
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={folder}/both.pem
ssl.truststore.type=PEM
ssl.truststore.location={authority.cert}
listener.name.ssl.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS;User:CN=certified
"""
    program = str(KAFKA_HOME / "kafka")
    env = {**os.environ, "KAFKA_PORT": str(port), "KAFKA_PROPS": properties}
    # It waits for a listener by a name that it finds in a list of one: this test waits itself.
    starting = subprocess.Popen([program, "up", str(folder)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(running, starting)
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsertions = [UserScramCredentialUpsertion(user, scram, f"{user}-pw".encode()) for user in (*USERS, "stranger")]
        admin = running.admin  # what it has begun ends with it
        for done in admin.alter_user_scram_credentials(upsertions).values():
            done.result(20)
        yield running
    finally:
        starting.send_signal(signal.SIGTERM)
        starting.wait(10)
        subprocess.run([program, "stop", str(folder)], check=False, timeout=60)


def wait_for(running: Guarded, starting: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    port = int(running.by_password.rpartition(":")[2])
    while True:
        assert starting.poll() in (None, 0), starting.communicate()[0].decode()[-2000:]
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            running.admin.list_topics(timeout=20)
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def topics(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Topics of their own with the shipped rights to them, as settings.

    The script's own commands are caught and carried out here: Kafka's program takes 3 s for each.
    """
    fresh = fresh_settings("unused:1", "redis://unused")
    names = {name: getattr(fresh, name) for name in Settings.model_fields if name.endswith("_topic") or name == "group"}
    kafka_admin.ensure_topics(load(**guarded.settings("admin", **names)))
    others = {"label_topic": f"labels-{fresh.group}", "model_topic": f"models-{fresh.group}"}
    admin = guarded.admin
    for made in admin.create_topics([NewTopic(name, 1, 1) for name in others.values()]).values():
        made.result(20)

    folder = tmp_path_factory.mktemp("acl")
    (folder / "acls").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (folder / "acls").chmod(0o755)
    env = os.environ | {f"LIMNER_{name.upper()}": value for name, value in {**names, **others}.items()}
    env |= {"KAFKA_ACLS": str(folder / "acls"), "BOOTSTRAP": guarded.by_password, "CONFIG": "admin.properties"}
    ran = subprocess.run(["bash", str(SCRIPT)], env=env, check=True, capture_output=True, text=True, timeout=60)
    bindings = [binding for line in ran.stdout.splitlines() for binding in bindings_of(json.loads(line))]
    for done in admin.create_acls(bindings).values():
        done.result(20)
    return names


def bindings_of(argv: list[str]) -> list[AclBinding]:
    options: dict[str, list[str]] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name = word
            options.setdefault(name, [])
        else:
            options[name].append(word)
    assert options.keys() <= {"--bootstrap-server", "--command-config", "--add", "--force", "--allow-principal",
                              "--operation", "--topic", "--group"}, argv  # fmt: skip
    operations = {"Read": AclOperation.READ, "Write": AclOperation.WRITE, "Describe": AclOperation.DESCRIBE,
                  "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS}  # fmt: skip
    resources = [(ResourceType.TOPIC, name) for name in options.get("--topic", [])]
    resources += [(ResourceType.GROUP, name) for name in options.get("--group", [])]
    return [
        AclBinding(kind, name, ResourcePatternType.LITERAL, options["--allow-principal"][0], "*",
                   operations[operation], AclPermissionType.ALLOW)
        for kind, name in resources
        for operation in options["--operation"]
    ]  # fmt: skip


def as_environment(settings: dict[str, Any]) -> dict[str, str]:
    return {f"LIMNER_{name.upper()}": str(value) for name, value in settings.items()}


def limner(settings: dict[str, Any], *args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "streaming.cli", *args]
    env = os.environ | as_environment(settings)
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=90, check=False)


# --- limner's own processes -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["users", "certificates"])
def test_events_come_into_profiles_over_a_guarded_kafka(
    guarded: Guarded, topics: dict[str, str], redis_url: str, tmp_path: Path, way: str
) -> None:
    """With `users` each process has its own, and no right more than the shipped ones."""

    def settings_of(user: str) -> dict[str, Any]:
        told = guarded.settings(user) if way == "users" else guarded.certified("certified")
        return {**told, **topics, "redis": redis_url, "namespace": way}

    customers = [f"ada-{way}", f"bob-{way}"]
    port = free_port()
    service = as_environment({**settings_of("limner-service"), "http_port": port})
    with (
        start_worker(as_environment({**settings_of("limner-worker"), "session_timeout_s": 6})) as worker,
        Child("service", [sys.executable, "-m", "streaming.cli", "serve"], env=service) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):

        def answers() -> bool:
            with suppress(httpx.TransportError):
                return client.get("/ready").status_code == 200
            return False

        process.wait_ready(answers, 30)
        events = [event(customer, number) for number, customer in enumerate(customers)]
        taken = client.post("/v1/events", json={"events": [events[0]]})
        assert (taken.status_code, taken.json()["accepted"]) == (202, 1)
        (tmp_path / "events.jsonl").write_text(json.dumps(events[1]) + "\n")
        loaded = limner(settings_of("limner-loader"), "load", str(tmp_path / "events.jsonl"))
        assert loaded.returncode == 0, loaded.stderr
        for customer in customers:
            deadline = time.monotonic() + 30
            while (answer := client.get(f"/v1/profiles/{customer}")).status_code != 200:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.05)
        if way == "certificates":
            return  # the rest has no other way to Kafka
        for option in ("--yes", "--verify"):
            done = limner(settings_of("limner-worker"), "erase", customers[0], option, "--wait", "30")
            assert done.returncode == 0, (done.stderr, worker.tail())
        assert client.get(f"/v1/profiles/{customers[0]}").status_code == 404


def event(customer: str, number: int) -> dict[str, Any]:
    return {"event_id": f"{customer}-{number}", "customer_id": customer, "ts": int(time.time() * 1000), "text": "hello"}


# --- what the users may not do ----------------------------------------------------------------------


def written(guarded: Guarded, user: str, topic: str) -> KafkaError | None:
    errors: list[KafkaError | None] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        errors.append(error)

    sender = producer(load(**guarded.settings(user)), message_timeout_ms=20_000)
    sender.produce(topic, b"x", b"k", on_delivery=delivered)
    sender.flush(30)
    (error,) = errors
    return error


WRITERS = {
    "limner-worker": {"delta_topic", "dead_letter_topic", "control_topic"},
    "limner-service": {"chat_topic", "order_topic"},
    "limner-loader": {"chat_topic", "order_topic"},
    "limner-trainer": set(),
    "stranger": set(),
}


@pytest.mark.parametrize("user", WRITERS)
def test_each_user_writes_where_it_must_and_nowhere_else(guarded: Guarded, topics: dict[str, str], user: str) -> None:
    for name, topic in topics.items():
        if name == "group":
            continue
        error = written(guarded, user, topic)
        if name in WRITERS[user]:
            assert error is None, (name, error)
        else:
            assert error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED, (name, error)


@pytest.mark.parametrize("user", WRITERS)
def test_only_the_worker_reads(guarded: Guarded, topics: dict[str, str], user: str) -> None:
    options = {**librdkafka_options(load(**guarded.settings(user))), "group.id": topics["group"],
               "enable.auto.commit": False, "enable.partition.eof": True}  # fmt: skip
    readable = set()
    for name, topic in topics.items():
        if name == "group":
            continue
        with closing(Consumer(options, logger=SILENT)) as consumer:
            if consumer.list_topics(topic, timeout=20).topics[topic].error is not None:
                continue
            consumer.assign([TopicPartition(topic, 0, 0)])
            deadline = time.monotonic() + (20 if user == "limner-worker" else 3)
            while name not in readable and time.monotonic() < deadline:
                message = consumer.poll(0.2)
                error = message.error() if message is not None else None
                if message is not None and (error is None or error.code() == KafkaError._PARTITION_EOF):
                    readable.add(name)
                if error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    break
    assert readable == (topics.keys() - {"group"} if user == "limner-worker" else set())


@pytest.mark.parametrize("user", USERS)
def test_nobody_makes_alters_or_deletes(guarded: Guarded, topics: dict[str, str], user: str) -> None:
    admin = AdminClient(librdkafka_options(load(**guarded.settings(user))))
    binding = AclBinding(ResourceType.TOPIC, "*", ResourcePatternType.LITERAL, f"User:{user}", "*", AclOperation.ALL,
                         AclPermissionType.ALLOW)  # fmt: skip
    tried = [
        *admin.create_topics([NewTopic("new", 1, 1)]).values(),
        *admin.delete_topics([topics["chat_topic"]]).values(),
        *admin.delete_consumer_groups([topics["group"]]).values(),
        *admin.create_acls([binding]).values(),
    ]
    for attempt in tried:
        with pytest.raises(KafkaException) as refused:
            attempt.result(20)
        assert refused.value.args[0].code() in (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        )


# --- what limner says -------------------------------------------------------------------------------


def test_a_user_without_rights_is_told_which_topics_it_can_not_see(guarded: Guarded, topics: dict[str, str]) -> None:
    with pytest.raises(BrokerUnavailable) as refused:
        kafka_admin.ensure_topics(load(**guarded.settings("stranger", **topics)), create=False)
    assert topics["chat_topic"] in str(refused.value)
    assert "user stranger" in str(refused.value) and "Describe" in str(refused.value)


@pytest.mark.parametrize("fault", ["password", "authority", "no TLS", "no certificate"])
def test_what_kafka_refuses_is_said_soon_and_without_the_password(guarded: Guarded, tmp_path: Path, fault: str) -> None:
    settings = guarded.settings("limner-worker", kafka_password="s3cret")
    match fault:
        case "authority":
            settings = guarded.settings("limner-worker", kafka_ca=Authority(tmp_path, "stranger").cert)
        case "no TLS":
            settings |= {"kafka_security": "SASL_PLAINTEXT", "kafka_ca": None}
        case "no certificate":
            settings = {**guarded.certified("certified"), "kafka_cert": None, "kafka_key": None}
    started = time.monotonic()
    check = doctor.check_broker(load(**settings))
    assert not check.ok
    assert time.monotonic() - started < 8
    assert "s3cret" not in f"{check.detail} {check.fix}"
    assert "LIMNER_KAFKA_" in check.fix, check


def test_a_key_that_is_none_is_a_wrong_setting(guarded: Guarded) -> None:
    settings = guarded.certified("certified")
    settings["kafka_key"] = settings["kafka_cert"]
    with pytest.raises(SettingsError, match="kafka_key"):
        kafka_admin.ensure_topics(load(**settings))
