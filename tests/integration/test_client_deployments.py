"""The SDK over a real cluster, real Sentinels and a real replica: it finds keys, survives failovers, asks replicas."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from math import log2
from typing import Any

import pytest
import redis

from streaming.client import InvalidArgument, ProfileClient, StoreUnavailable
from streaming.embedded.processes import Child, free_port, port_is_free
from streaming.embedded.store import find_server
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from tests import stored
from tests.clients import Both

HALF_LIFE = 7 * 86_400_000
IDS = [f"c{i}" for i in range(60)]
SERVICE = "mymaster"


class Node(Child):
    """A valkey-server with options of its own."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        super().__init__(
            f"node {self.port}",
            [find_server(), *options, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", ".", "--save", "",
             "--appendonly", "no", "--repl-diskless-sync-delay", "0"],
        )  # fmt: skip
        self.wait_ready(lambda: bool(self("PING")))

    def __call__(self, *command: Any) -> Any:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2.0) as client:
                return client.execute_command(*command)
        except redis.ConnectionError:
            return None

    def role(self) -> str:
        return str(self.info("replication")["role"])

    def info(self, section: str) -> dict[str, Any]:
        with redis.Redis.from_url(self.url) as client:
            found: dict[str, Any] = client.info(section)
            return found


def until(met: Callable[[], Any], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        with suppress(StoreUnavailable, redis.ConnectionError):
            if met():
                return
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def fill(client: Any, namespace: str = "t") -> None:
    now = int(time.time() * 1000)
    sums = {"n": 1, "t": now, "r": [1], "l": {"interests": [HALF_LIFE, {"tea": [1, now, 1, "m", ["m1"]]}]}}
    for customer_id in IDS:
        client.set(profile_key(namespace, customer_id), stored.profile(customer_id, now, {"chat": sums}))
    client.hset(half_lives_key(namespace), "interests", HALF_LIFE)
    scores = {customer_id: log2(1 + at) + now / HALF_LIFE for at, customer_id in enumerate(IDS)}
    client.zadd(audience_key(namespace, "interests", "tea"), scores)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- a cluster --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Node]]:
    """Three masters and, last, a replica of the first."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(4):
            port = free_port()
            while not port_is_free(port + 10_000):  # the nodes' own bus
                port = free_port()
            # A replica may take over however long it has been alone: what a cluster for production would not let it.
            options = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "700",
                "--cluster-replica-validity-factor",
                "0",
            ]
            nodes.append(stack.enter_context(Node(*options, port=port)))
        thirds = [(0, 5460), (5461, 10922), (10923, 16383)]
        for node, slots in zip(nodes, thirds, strict=False):
            node("CLUSTER", "ADDSLOTSRANGE", *slots)
        for node in nodes[1:]:
            node("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        first = nodes[0]("CLUSTER", "MYID")
        until(lambda: nodes[3]("CLUSTER", "REPLICATE", first) if len(nodes[3]("CLUSTER", "SHARDS")) > 3 else None)
        until(lambda: all(b"cluster_state:ok" in node("CLUSTER", "INFO") for node in nodes))
        until(lambda: nodes[3].info("replication")["master_link_status"] == "up")
        with redis.RedisCluster(host="127.0.0.1", port=nodes[0].port) as client:
            fill(client)
        yield nodes


def cluster_url(nodes: list[Node]) -> str:
    return f"redis+cluster://127.0.0.1:{nodes[1].port}"


def test_a_cluster_is_read_as_one_store(cluster: list[Node], kind: str) -> None:
    with Both(kind, cluster_url(cluster)) as client:
        client.ping()
        assert client.get("c7").customer_id == "c7"
        assert client.get("nobody") is None
        found = client.get_many([*IDS, "nobody", "c0"])
        assert list(found) == [*IDS, "nobody"]
        assert all(found[customer_id].customer_id == customer_id for customer_id in IDS)
        assert found["nobody"] is None
        page = client.audience("interests", "tea", limit=40)
        rest = client.audience("interests", "tea", limit=40, cursor=page.cursor)
        assert [member for member, _ in [*page, *rest]] == IDS[::-1]
        assert rest.cursor is None
        assert client.explain("c7").labels[0].sources[0].event_ids == ["m1"]


def test_a_node_named_as_a_single_server_says_how_to_name_it(cluster: list[Node], kind: str) -> None:
    with Both(kind, cluster[0].url) as client, pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
        for customer_id in IDS:
            client.get(customer_id)


def test_a_clusters_cache_is_told_by_every_master(cluster: list[Node], kind: str) -> None:
    with Both(kind, cluster_url(cluster), cache_mb=8) as client:

        def all_kept() -> bool:
            client.get_many(IDS)
            before = [node.info("commandstats").get("cmdstat_get", {}).get("calls") for node in cluster]
            client.get_many(IDS)
            client.pause(0.02)
            return before == [node.info("commandstats").get("cmdstat_get", {}).get("calls") for node in cluster]

        until(all_kept)
        with redis.RedisCluster(host="127.0.0.1", port=cluster[0].port) as writer:
            for customer_id in IDS:
                writer.delete(profile_key("t", customer_id))
            client.pause(0.1)
            assert set(client.get_many(IDS).values()) == {None}
            fill(writer)
        client.pause(0.1)
        assert all(client.get_many(IDS).values())


def test_a_replica_answers_when_a_master_hangs(cluster: list[Node], kind: str) -> None:
    owned = [it for it in IDS if redis.crc.key_slot(profile_key("t", it)) <= 5460]
    with Both(kind, cluster_url(cluster), hedge_after_ms=30, timeout_s=2.0) as client:
        assert client.get(owned[0]) and client.get_many(owned)
        client.pause(0.2)
        os.kill(cluster[0].pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert client.get(owned[0]).customer_id == owned[0]
            assert time.monotonic() - started < 0.6
        finally:
            os.kill(cluster[0].pid, signal.SIGCONT)


def test_a_clusters_failovers_are_followed(cluster: list[Node]) -> None:
    """Last of the cluster's tests: its first master hangs and its replica takes over, then dies and it is back."""
    owned = [it for it in IDS if redis.crc.key_slot(profile_key("t", it)) <= 5460]
    url = cluster_url(cluster)
    with Both("sync", url, cache_mb=8) as one, Both("async", url, cache_mb=8) as other:
        for fail, recover in ((signal.SIGSTOP, signal.SIGCONT), (signal.SIGKILL, None)):
            master, replica = sorted((cluster[0], cluster[3]), key=Node.role)
            for client in (one, other):
                client.get_many(IDS)
                client.pause(0.3)
                client.get_many(IDS)
            os.killpg(master.pid, fail)
            until(lambda replica=replica: replica.role() == "master")
            for client in (one, other):
                until(lambda client=client: all(client.get_many(owned).values()) and client.get(owned[0]), 15.0)
            with redis.RedisCluster(host="127.0.0.1", port=replica.port, socket_timeout=1.0) as writer:
                writer.delete(profile_key("t", owned[0]))
                for client in (one, other):
                    until(lambda client=client: client.get(owned[0]) is None, 2.0)
                fill(writer)
            if recover:
                os.killpg(master.pid, recover)
            else:
                master.restart()
            until(lambda master=master: master("PING") and master.info("replication").get("master_link_status") == "up")
            until(lambda master=master, replica=replica: master("DBSIZE") == replica("DBSIZE"))


# --- Sentinel ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentinels() -> Iterator[tuple[Node, Node, list[Child]]]:
    """A master, its replica, and three Sentinels that name it after a second of silence."""
    with ExitStack() as stack:
        master = stack.enter_context(Node())
        replica = stack.enter_context(Node("--replicaof", f"127.0.0.1 {master.port}"))
        until(lambda: replica.info("replication")["master_link_status"] == "up")
        watchers: list[Child] = []
        for _ in range(3):
            watcher = Sentinel(master.port)
            watchers.append(stack.enter_context(watcher))
        until(lambda: all(it.info()[f"{SERVICE}"]["num-other-sentinels"] == 2 for it in watchers))
        until(lambda: all(it.info()[f"{SERVICE}"]["num-slaves"] == 1 for it in watchers))
        with redis.Redis.from_url(master.url) as client:
            fill(client)
        yield master, replica, watchers


class Sentinel(Child):
    def __init__(self, master_port: int) -> None:
        self.port = free_port()
        config = (
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor {SERVICE} 127.0.0.1 {master_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 3000\n"
        )
        script = f"printf '%s' '{config}' > sentinel.conf && exec '{find_server()}' sentinel.conf --sentinel"
        super().__init__("sentinel", ["sh", "-c", script])
        self.wait_ready(lambda: bool(self.info()))

    def info(self) -> dict[str, Any]:
        try:
            with redis.Redis(port=self.port, socket_timeout=2.0) as client:
                masters: dict[str, Any] = client.sentinel_masters()
                return masters
        except redis.ConnectionError:
            return {}


def sentinel_url(watchers: list[Any]) -> str:
    return f"redis+sentinel://{','.join(f'127.0.0.1:{it.port}' for it in watchers)}/{SERVICE}"


def test_sentinels_replica_answers_when_the_master_hangs(sentinels: tuple[Node, Node, list[Child]], kind: str) -> None:
    master, _, watchers = sentinels
    with Both(kind, sentinel_url(watchers), hedge_after_ms=30, timeout_s=2.0) as client:
        assert client.get("c1")
        os.kill(master.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert client.get("c2").customer_id == "c2"
        assert time.monotonic() - started < 0.6
        os.kill(master.pid, signal.SIGCONT)


def test_a_service_that_no_sentinel_knows_is_named(sentinels: tuple[Node, Node, list[Child]], kind: str) -> None:
    url = sentinel_url(sentinels[2]).replace(SERVICE, "other")
    with Both(kind, url) as client, pytest.raises(StoreUnavailable, match="other"):
        client.get("c1")


def test_sentinel_names_the_master_and_its_successor(sentinels: tuple[Node, Node, list[Child]]) -> None:
    """Last of the Sentinels' tests: the master dies."""
    master, replica, watchers = sentinels
    url = sentinel_url(watchers)
    with Both("sync", url, cache_mb=8) as one, Both("async", url, cache_mb=8) as other:
        for client in (one, other):
            client.ping()
            assert client.get_many(["c1", "nobody"])["c1"].customer_id == "c1"
            assert len(client.audience("interests", "tea", limit=5)) == 5
            client.pause(0.3)
            client.get("c1")
        master.kill()
        until(lambda: replica.role() == "master")
        for client in (one, other):
            until(lambda client=client: client.get("c1") is not None)
        with redis.Redis.from_url(replica.url) as writer:
            writer.delete(profile_key("t", "c1"))
        for client in (one, other):
            until(lambda client=client: client.get("c1") is None, 2.0)


# --- replicas by URL --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Node, Node]]:
    with Node() as master, Node("--replicaof", f"127.0.0.1 {master.port}") as replica:
        with redis.Redis.from_url(master.url) as client:
            fill(client)
        until(lambda: replica.info("replication")["master_link_status"] == "up")
        until(lambda: replica("DBSIZE") == master("DBSIZE"))
        yield master, replica


def test_a_prompt_primary_is_asked_alone(pair: tuple[Node, Node], kind: str) -> None:
    master, replica = pair
    with Both(kind, master.url, replicas=[replica.url], hedge_after_ms=400) as client:
        replica("CONFIG", "RESETSTAT")
        assert client.get("c1") and client.get_many(["c1"])
        assert not {"cmdstat_get", "cmdstat_mget"} & replica.info("commandstats").keys()


def test_a_replica_answers_for_a_primary_that_hangs_or_is_gone(pair: tuple[Node, Node], kind: str) -> None:
    master, replica = pair
    with Both(kind, master.url, replicas=[replica.url], hedge_after_ms=20, timeout_s=1.0) as client:
        assert client.get("c1")
        os.kill(master.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert client.get("c1").customer_id == "c1"
            assert client.get_many(["c1", "nobody"])["c1"].customer_id == "c1"
            assert time.monotonic() - started < 0.5
        finally:
            os.kill(master.pid, signal.SIGCONT)
    gone = f"redis://127.0.0.1:{free_port()}/0"
    with Both(kind, gone, replicas=[replica.url], hedge_after_ms=400) as client:
        started = time.monotonic()
        assert client.get("c1").customer_id == "c1"
        assert time.monotonic() - started < 0.3  # a failure is not waited for
    with Both(kind, gone, replicas=[gone], hedge_after_ms=20) as client, pytest.raises(StoreUnavailable):
        client.get("c1")


def test_what_a_replica_said_is_not_kept(pair: tuple[Node, Node], kind: str) -> None:
    """It may lack what was announced before it was asked."""
    master, replica = pair
    with Both(kind, master.url, replicas=[replica.url], hedge_after_ms=1, timeout_s=1.0, cache_mb=1) as client:
        client.get("c1")
        client.pause(0.3)
        os.kill(master.pid, signal.SIGSTOP)
        try:
            client.get("c2")
        finally:
            os.kill(master.pid, signal.SIGCONT)
        client.pause(0.05)
        replica("CONFIG", "RESETSTAT")
        master("CONFIG", "RESETSTAT")
        client.get("c2")
        asked = master.info("commandstats").keys() | replica.info("commandstats").keys()
        assert {"cmdstat_mget", "cmdstat_get"} & asked


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"hedge_after_ms": 5}, "hedge_after_ms"),
        ({"replicas": ["redis://127.0.0.1"]}, "replicas"),
        ({"replicas": ["redis+cluster://127.0.0.1"], "hedge_after_ms": 5}, "replicas"),
        ({"replicas": "redis://127.0.0.1", "hedge_after_ms": 5}, "replicas"),
        ({"hedge_after_ms": 500, "replicas": ["redis://127.0.0.1"]}, "hedge_after_ms"),
        ({"deadline_s": 0.1}, "deadline_s"),
        ({"retries": -1}, "retries"),
        ({"cache_mb": -1}, "cache_mb"),
        ({"url": "redis+sentinel://127.0.0.1"}, "url"),
        ({"url": "redis+cluster://127.0.0.1/3"}, "url"),
        ({"url": "redis+other://127.0.0.1"}, "url"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ProfileClient(**({"url": "redis://127.0.0.1"} | options))
    assert caught.value.field == field
