"""Connections of the client for an event loop: to one server, to what Sentinel leads to, or to a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, cast

import redis.asyncio
import redis.asyncio.sentinel
from redis.asyncio.cluster import RedisCluster
from redis.cluster import PRIMARY, LoadBalancingStrategy
from redis.exceptions import ConnectionError, ResponseError

from streaming.client.calls import FAILURES
from streaming.client.connect import MAX_CONNECTIONS, Target, behind_sentinel, patience
from streaming.client.servers import Command, Connection

# Announcements are push messages, which RESP3 has; `aio_watch` keeps the time.
ANNOUNCING = {"protocol": 3, "socket_timeout": None}


class AsyncServer(Protocol):
    """`servers.Server` with awaits."""

    async def ask(self, *commands: Command, within_s: float | None = None) -> list[Any]: ...

    async def one(self, key: bytes, within_s: float | None = None) -> bytes | None: ...

    async def many(self, keys: Sequence[bytes], within_s: float | None = None) -> list[bytes | None]: ...

    async def prepare(self) -> None: ...

    def source(self, key: bytes) -> str: ...

    async def announcing(self, source: str) -> Connection | None: ...

    async def close(self) -> None: ...


class AsyncConnections:
    """`servers.Connections` for one event loop. One timer spans an attempt, connecting included: redis-py's own,
    one a step, each start a task."""

    def __init__(self, target: Target, timeout_s: float, *, replica: bool = False) -> None:
        self._timeout_s = timeout_s
        self._pool = _pool(target, timeout_s, replica=replica)
        self._idle: list[Connection] = []

    async def ask(self, *commands: Command, within_s: float | None = None) -> list[Any]:
        async with asyncio.timeout(self._timeout_s if within_s is None else within_s):
            try:
                connection = self._idle.pop()
            except IndexError:
                return await self._exchange(await self._connect(), commands)
            try:
                return await self._exchange(connection, commands)
            except ConnectionError:  # closed while it lay idle; so, most likely, were all others
                await self.close()
                return await self._exchange(await self._connect(), commands)

    async def one(self, key: bytes, within_s: float | None = None) -> bytes | None:
        return cast(bytes | None, (await self.ask(("GET", key), within_s=within_s))[0])

    async def many(self, keys: Sequence[bytes], within_s: float | None = None) -> list[bytes | None]:
        return cast(list[bytes | None], (await self.ask(("MGET", *keys), within_s=within_s))[0])

    async def _exchange(self, connection: Connection, commands: tuple[Command, ...]) -> list[Any]:
        idle = self._idle
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies = [await _reply(connection) for _ in commands]
        except BaseException:  # a reply may still be on its way
            await connection.disconnect(nowait=True)
            raise
        if idle is self._idle:
            idle.append(connection)
        else:
            await connection.disconnect(nowait=True)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    async def prepare(self) -> None:
        await self.ask(("PING",))

    def source(self, key: bytes) -> str:
        return ""

    async def announcing(self, source: str) -> Connection:
        # After a failover some connections may still lead to the old master, which this one won't hear of.
        await self.close()
        return self._new(**ANNOUNCING)

    async def close(self) -> None:
        """What is in use is closed after its use; a later call connects anew."""
        stale, self._idle = self._idle, []
        for connection in stale:
            await connection.disconnect(nowait=True)

    async def _connect(self) -> Connection:
        connection = self._new()
        try:
            await connection.connect()  # not left to the first command, which would not ask Sentinel where to
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _new(self, **overrides: Any) -> Connection:
        return self._pool.connection_class(**{**self._pool.connection_kwargs, **overrides})


async def _reply(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:  # the replies of the other commands follow
        return error


def _pool(target: Target, timeout_s: float, *, replica: bool) -> Any:
    if target.kind == "server":
        return redis.asyncio.ConnectionPool.from_url(target.url, **patience(None))
    manager = redis.asyncio.sentinel.Sentinel(target.sentinels, sentinel_kwargs=patience(timeout_s))  # type: ignore[no-untyped-call]
    return redis.asyncio.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        target.service, manager, is_master=not replica, **(behind_sentinel(target) | patience(None))
    )


class AsyncCluster:
    """`servers.Cluster` with awaits."""

    def __init__(self, target: Target, timeout_s: float, *, replica: bool = False) -> None:
        self._client = RedisCluster.from_url(
            target.url,
            **patience(timeout_s),
            max_connections=MAX_CONNECTIONS,
            load_balancing_strategy=LoadBalancingStrategy.RANDOM_REPLICA if replica else None,
        )

    async def ask(self, *commands: Command, within_s: float | None = None) -> list[Any]:
        """No timer of ours: redis-py looks at the cluster's plan again after a timeout of its own, and `within_s`
        can't be had."""
        if len(commands) == 1:
            return [await self._client.execute_command(*commands[0])]
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        try:
            return list(await pipeline.execute())
        except FAILURES:  # unlike a single command's, its failure does not make redis-py look at the plan again
            await self._client.nodes_manager.initialize()
            raise

    async def one(self, key: bytes, within_s: float | None = None) -> bytes | None:
        return cast(bytes | None, (await self.ask(("GET", key), within_s=within_s))[0])

    async def many(self, keys: Sequence[bytes], within_s: float | None = None) -> list[bytes | None]:
        return await self.ask(*(("GET", key) for key in keys), within_s=within_s)

    async def prepare(self) -> None:
        await self._client.initialize()

    def source(self, key: bytes) -> str:
        node = self._client.get_node_from_key(key.decode())
        if node is None:
            raise ConnectionError("the cluster is not known yet")
        return node.name

    async def announcing(self, source: str) -> Connection | None:
        node = self._client.get_node(node_name=source)
        if node is None or node.server_type != PRIMARY:
            return None
        return node.connection_class(**{**node.connection_kwargs, **ANNOUNCING})

    async def close(self) -> None:
        await self._client.aclose()
