"""Connections of the client for threads: to one server, to what Sentinel leads to, or to a cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

import redis
import redis.sentinel
from redis.cluster import PRIMARY, LoadBalancingStrategy, RedisCluster
from redis.exceptions import ConnectionError, ResponseError

from streaming.client.cache import BEAT_S
from streaming.client.connect import MAX_CONNECTIONS, Target, behind_sentinel, patience

Command = tuple[Any, ...]
Connection = Any  # redis-py's; its methods have no types

# Announcements are push messages, which RESP3 has; the timeout makes time for signs of life.
ANNOUNCING = {"protocol": 3, "socket_timeout": BEAT_S}


class Server(Protocol):
    """Answers reads. All raise redis-py's exceptions."""

    def ask(self, *commands: Command, within_s: float | None = None) -> list[Any]:
        """The replies, in one round trip where there is one server; `within_s`: sooner than the usual timeout."""

    def one(self, key: bytes, within_s: float | None = None) -> bytes | None:
        """The value of a key."""

    def many(self, keys: Sequence[bytes], within_s: float | None = None) -> list[bytes | None]:
        """The values of keys."""

    def prepare(self) -> None:
        """Connect before the first question."""

    def source(self, key: bytes) -> str:
        """A name of the server that has `key`."""

    def announcing(self, source: str) -> Connection | None:
        """A connection to that server for `watch`, not connected yet; None when it has left the cluster."""

    def close(self) -> None: ...


class Connections:
    """Connections to one server, kept between calls, the last used first. Thread-safe, and safe to fork.

    redis-py's pool asks the kernel before each command whether a connection still stands, under a lock, and counts
    for its telemetry: half of the time of a look-up. Here a command on a kept connection that turns out to be closed
    is repeated at once on a new one, which reads may be.
    """

    def __init__(self, target: Target, timeout_s: float, *, replica: bool = False) -> None:
        self._pool = _pool(target, timeout_s, replica=replica)
        self._idle: list[Connection] = []
        self._pid = os.getpid()

    def ask(self, *commands: Command, within_s: float | None = None) -> list[Any]:
        if self._pid != os.getpid():  # a child must not use its parent's sockets
            self._pid, self._idle = os.getpid(), []
        idle = self._idle
        if within_s is not None:
            connection = self._connect(socket_timeout=within_s, socket_connect_timeout=within_s)
            return self._exchange(connection, commands, [])  # not kept
        try:
            connection = idle.pop()
        except IndexError:
            return self._exchange(self._connect(), commands, idle)
        try:
            return self._exchange(connection, commands, idle)
        except ConnectionError:  # closed while it lay idle; so, most likely, were all others
            self.close()
            return self._exchange(self._connect(), commands, self._idle)

    def one(self, key: bytes, within_s: float | None = None) -> bytes | None:
        return cast(bytes | None, self.ask(("GET", key), within_s=within_s)[0])

    def many(self, keys: Sequence[bytes], within_s: float | None = None) -> list[bytes | None]:
        return cast(list[bytes | None], self.ask(("MGET", *keys), within_s=within_s)[0])

    def _exchange(self, connection: Connection, commands: tuple[Command, ...], idle: list[Connection]) -> list[Any]:
        try:
            packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
            connection.send_packed_command(packed, check_health=False)
            replies = [_reply(connection) for _ in commands]
        except BaseException:  # a reply may still be on its way
            connection.disconnect()
            raise
        if idle is self._idle:
            idle.append(connection)
        else:
            connection.disconnect()
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    def prepare(self) -> None:
        self.ask(("PING",))

    def source(self, key: bytes) -> str:
        return ""

    def announcing(self, source: str) -> Connection:
        # After a failover some connections may still lead to the old master, which this one won't hear of.
        self.close()
        return self._new(**ANNOUNCING)

    def close(self) -> None:
        """What is in use is closed after its use; a later call connects anew."""
        stale, self._idle = self._idle, []
        for connection in stale:
            connection.disconnect()

    def _connect(self, **overrides: Any) -> Connection:
        connection = self._new(**overrides)
        connection.connect()  # not left to the first command, which would not ask Sentinel where to
        return connection

    def _new(self, **overrides: Any) -> Connection:
        return self._pool.connection_class(**{**self._pool.connection_kwargs, **overrides})


def _reply(connection: Connection) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:  # the replies of the other commands follow
        return error


def _pool(target: Target, timeout_s: float, *, replica: bool) -> Any:
    if target.kind == "server":
        return redis.ConnectionPool.from_url(target.url, **patience(timeout_s))
    manager = redis.sentinel.Sentinel(target.sentinels, sentinel_kwargs=patience(timeout_s))  # type: ignore[no-untyped-call]
    return redis.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        target.service, manager, is_master=not replica, **(behind_sentinel(target) | patience(timeout_s))
    )


class Cluster:
    """A Redis Cluster, found when it is first asked. redis-py knows the way of each key."""

    def __init__(self, target: Target, timeout_s: float, *, replica: bool = False) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._replica = replica
        self._lock = threading.Lock()
        self._found: Any = None

    @property
    def client(self) -> Any:
        if self._found is None:
            with self._lock:
                if self._found is None:
                    self._found = RedisCluster.from_url(
                        self._target.url,
                        **patience(self._timeout_s),
                        max_connections=MAX_CONNECTIONS,
                        load_balancing_strategy=LoadBalancingStrategy.RANDOM_REPLICA if self._replica else None,
                    )
        return self._found

    def ask(self, *commands: Command, within_s: float | None = None) -> list[Any]:
        """`within_s` can't be had: the nodes' connections have one timeout."""
        if len(commands) == 1:
            return [self.client.execute_command(*commands[0])]
        pipeline = self.client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute())

    def one(self, key: bytes, within_s: float | None = None) -> bytes | None:
        return cast(bytes | None, self.ask(("GET", key))[0])

    def many(self, keys: Sequence[bytes], within_s: float | None = None) -> list[bytes | None]:
        return self.ask(*(("GET", key) for key in keys))

    def prepare(self) -> None:
        _ = self.client

    def source(self, key: bytes) -> str:
        return str(self.client.get_node_from_key(key.decode()).name)

    def announcing(self, source: str) -> Connection | None:
        node = self.client.get_node(node_name=source)
        if node is None or node.server_type != PRIMARY:
            return None
        pool = self.client.get_redis_connection(node).connection_pool
        return pool.connection_class(**{**pool.connection_kwargs, **ANNOUNCING})

    def close(self) -> None:
        if self._found is not None:
            self._found.close()
