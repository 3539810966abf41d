"""Requests to one HTTP server over kept connections, from a process of its own, and how long each took.

Raw sockets and prepared bytes: on two cores the server, the store and this share the machine, and a client library
would take more of it than the server does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import uvloop

# Linux' timers and the event loop's wake on the millisecond: pacing is by what is due at each of its turns.
_TURN_S = 0.001


@dataclass(frozen=True, slots=True)
class Load:
    port: int
    requests: Sequence[bytes]  # sent in turn, again and again
    connections: int
    seconds: float
    per_s: float = 0.0  # 0: each connection sends again as soon as it has its answer


@dataclass(frozen=True, slots=True)
class Answers:
    per_s: float
    latencies_s: list[float]  # sorted; of a paced load from the time at which a request was due
    refused: int  # answers other than 200

    def percentile_ms(self, share: float) -> float:
        return round(1000 * self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))], 3)


def measure(load: Load, cores: frozenset[int] = frozenset()) -> Answers:
    """Run `load` on `cores` (any, if empty), in a process that ends with it.

    Raises:
        RuntimeError: the server closed a connection or did not answer.
    """
    mine, its = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(load, cores, its), daemon=True)
    process.start()
    its.close()
    try:
        answers = mine.recv()
    except EOFError:
        raise RuntimeError(f"the generator ended without an answer (exit code {process.exitcode})") from None
    finally:
        process.join()
    if isinstance(answers, str):
        raise RuntimeError(answers)
    return answers  # type: ignore[no-any-return]


def _work(load: Load, cores: frozenset[int], answers: Connection) -> None:
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        answers.send(uvloop.run(_run(load)))
    except Exception as error:  # noqa: BLE001  the parent raises it
        answers.send(f"{type(error).__name__}: {error}")


async def _run(load: Load) -> Answers:
    return await _Run(load).run()


class _Wire(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, answered: Callable[[_Wire, float, bool], None], lost: Callable[[], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._buffer = bytearray()
        self._missing = 0
        self._good = True
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def ask(self, request: bytes, since: float) -> None:
        self._since = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            at = head.index(b"content-length:") + 15
            self._missing = end + 4 + int(head[at:].split(b"\r\n", 1)[0]) - len(self._buffer)
            self._good = head[9:12] == b"200"
            self._buffer.clear()
        if not self._missing:
            self._answered(self, time.perf_counter() - self._since, self._good)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def close(self) -> None:
        self._transport.abort()


class _Run:
    """The load under way: what is due waits for a free connection, and that wait counts, for a server that falls
    behind must not slow a paced load down (coordinated omission)."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._latencies: list[float] = []
        self._refused = 0
        self._sent = 0
        self._free: list[_Wire] = []
        self._due: deque[float] = deque()
        self._until = 0.0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Answers:
        load = self._load
        loop = asyncio.get_running_loop()
        wires = [
            (await loop.create_connection(lambda: _Wire(self._answered, self._lost), "127.0.0.1", load.port))[1]
            for _ in range(load.connections)
        ]
        started = time.perf_counter()
        self._until = started + load.seconds
        if load.per_s:
            self._free = wires
            await self._pace(started)
        else:
            for wire in wires:
                self._ask(wire, time.perf_counter())
        await asyncio.wait_for(self._over, load.seconds + 60)
        took = time.perf_counter() - started
        for wire in wires:
            wire.close()
        return Answers(len(self._latencies) / took, sorted(self._latencies), self._refused)

    async def _pace(self, started: float) -> None:
        number = 0
        while (now := time.perf_counter()) < self._until:
            while number < (now - started) * self._load.per_s:
                self._due.append(now)
                number += 1
            while self._due and self._free:
                self._ask(self._free.pop(), self._due.popleft())
            await asyncio.sleep(_TURN_S)
        self._end_if_answered()

    def _ask(self, wire: _Wire, since: float) -> None:
        wire.ask(self._load.requests[self._sent % len(self._load.requests)], since)
        self._sent += 1

    def _answered(self, wire: _Wire, took_s: float, good: bool) -> None:
        self._latencies.append(took_s)
        self._refused += not good
        if self._due:
            self._ask(wire, self._due.popleft())
        elif not self._load.per_s and time.perf_counter() < self._until:
            self._ask(wire, time.perf_counter())
        else:
            self._free.append(wire)
            self._end_if_answered()

    def _end_if_answered(self) -> None:
        if len(self._free) == self._load.connections and time.perf_counter() >= self._until and not self._over.done():
            self._over.set_result(None)

    def _lost(self) -> None:
        if not self._over.done():
            self._over.set_exception(ConnectionError("the server closed a connection"))


Verb = Literal["GET", "POST"]


def request(verb: Verb, path: str, body: bytes = b"", headers: Sequence[str] = ()) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
