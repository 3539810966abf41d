"""The connections on which servers announce changes to the cache of the client for threads: a thread each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from time import monotonic

from redis.exceptions import ConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streaming.client.cache import BEAT_S, TRUST_S, ProfileCache
from streaming.client.calls import FAILURES
from streaming.client.servers import Connection

# A server that was restarted is back within seconds, and until then each read goes to it anyway.
RECONNECT_S = 0.1

_log = logging.getLogger("limner.client")  # `streaming.logs` needs structlog, which a caller need not have


class Watch:
    """Keeps `cache` told of changes at each source asked for. Threads start when first needed, and again after a fork.

    `connect` gives a connection to a source that is not connected yet, with BEAT_S as its timeout, or None for a
    server that has left the cluster. It runs at the begin and after each loss.
    """

    def __init__(self, cache: ProfileCache, connect: Callable[[str], Connection | None]) -> None:
        self.cache = cache
        self._connect = connect
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._connections: dict[str, Connection] = {}
        self._stopped = False

    def ensure(self, source: str) -> None:
        """Have `source` watched; returns at once."""
        thread = self._threads.get(source)
        if thread is not None and thread.is_alive():
            return
        with self._lock:
            thread = self._threads.get(source)
            if self._stopped or (thread is not None and thread.is_alive()):
                return
            self.cache.lost(source)
            thread = threading.Thread(target=self._run, args=(source,), name="limner-cache", daemon=True)
            self._threads[source] = thread
            thread.start()

    def close(self) -> None:
        with self._lock:
            self._stopped = True
            threads = list(self._threads.values())
        for connection in list(self._connections.values()):
            connection.disconnect()  # wakes the thread that reads from it
        for thread in threads:
            thread.join(2 * BEAT_S)

    def _run(self, source: str) -> None:
        warned = False
        while not self._stopped:
            try:
                connection = self._connect(source)
                if connection is None:
                    self.cache.gone(source)
                    return
                self._connections[source] = connection
                try:
                    self._listen(connection, source)
                finally:
                    self.cache.lost(source)
                    connection.disconnect()
            except (*FAILURES, AttributeError) as error:  # AttributeError: `close` took the socket away
                if not warned and not self._stopped:
                    warned = True
                    _log.warning("the profile cache is empty until its connection is back: %s", error or "timeout")
                time.sleep(RECONNECT_S)

    def _listen(self, connection: Connection, source: str) -> None:
        """Until the connection breaks, or gives no sign of life for TRUST_S."""
        parser = connection._get_parser()
        parser.set_invalidation_push_handler(lambda message: message)
        connection.connect()
        connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self.cache.prefix)
        connection.read_response()
        asked_at, waiting = 0.0, False
        while not self._stopped:
            if not connection.is_connected:  # a command would connect anew, untracked
                raise ConnectionError("closed")
            now = monotonic()
            if not waiting and now - asked_at >= BEAT_S:
                connection.send_command("PING")
                asked_at, waiting = now, True
            elif waiting and now - asked_at > TRUST_S:
                raise RedisTimeoutError(f"no sign of life within {TRUST_S:g} s")
            try:
                message = connection.read_response(disconnect_on_error=False, push_request=True)
            except RedisTimeoutError:
                continue
            if isinstance(message, list):  # ["invalidate", [key, ...] or None]
                self.cache.changed(message[1])
            elif message is not None:
                self.cache.keep_trusting(source, asked_at)
                waiting = False
