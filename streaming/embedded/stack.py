"""Everything of limner on this machine: broker, store, topics, workers, HTTP service, in the order they need."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from model.e5 import ensure_base
from model.errors import ModelError
from streaming import doctor, kafka_admin
from streaming.embedded.broker import Broker
from streaming.embedded.processes import Child, StartFailed, free_port, port_is_free
from streaming.embedded.readings import get
from streaming.embedded.store import Store
from streaming.errors import LimnerError, StoreUnavailable
from streaming.settings import Settings

# A worker imports torch, loads the model and embeds the packs' labels: 10 s on two idle cores, 40 s on busy ones.
_WORKER_START_S = 120.0

# Told of each step when it is done: what was started, and where it answers.
Say = Callable[[str, str], None]


@dataclass(slots=True)
class Stack:
    settings: Settings  # the ones in force for the children
    children: list[Child] = field(default_factory=list)
    metrics_ports: list[int] = field(default_factory=list)  # of the workers

    def check_alive(self) -> None:
        """
        Raises:
            LimnerError: a child ended by itself; the message names it and holds the end of its log.
        """
        for child in self.children:
            if child.exit_code is not None:
                raise LimnerError(
                    f"{child.name} ended with code {child.exit_code}; the end of its log:\n{child.tail()}"
                )


@contextmanager
def running(settings: Settings, *, workers: int, say: Say) -> Iterator[Stack]:
    """Start all and end all. A server is embedded unless `settings` was told of one (argument, environment, file).

    Raises:
        StartFailed: a server did not start; the message holds the end of its log.
        BrokerUnavailable, StoreUnavailable: the user's own server does not answer.
        LimnerError: the base model can't be had, or the HTTP port is taken.
    """
    stack = Stack(settings)
    with ExitStack() as ending:

        def add(child: Child) -> Child:
            stack.children.append(ending.enter_context(child))
            return child

        if settings.model == "base":
            try:
                ensure_base(settings.cache_dir, lambda text: say("model", text))
            except ModelError as error:
                raise LimnerError(str(error)) from error
        say("model", settings.model)

        told = settings.model_fields_set
        found: dict[str, object] = {"http_port": _http_port(settings, say)}
        if "kafka" not in told:
            broker = Broker.start()
            add(broker)
            found["kafka"] = broker.bootstrap
            say("broker", broker.bootstrap)
        if "redis" not in told:
            store = Store.start()
            add(store)
            found["redis"] = store.url
            say("store", store.url)
        else:
            _require_store(settings)
            say("store", f"{doctor.masked(settings.redis)} (yours)")
        stack.settings = settings = settings.model_copy(update=found)

        kafka_admin.ensure_topics(settings)
        own = " (yours)" if "kafka" in told else ""
        say("topics", f"{settings.partitions} partitions each on {settings.kafka}{own}")

        environment = _environment(settings)
        if workers > 1 and not settings.engines:  # each would take what was measured for one
            environment["LIMNER_ENGINES"] = str(max(1, (os.cpu_count() or 1) // workers))
        started_workers: list[Child] = []
        for number in range(1, workers + 1):
            port = free_port()
            stack.metrics_ports.append(port)
            name = f"worker {number}" if workers > 1 else "worker"
            started_workers.append(add(_limner(name, "worker", {**environment, "LIMNER_METRICS_PORT": str(port)})))
        service = add(_limner("HTTP service", "serve", environment))
        # The service knows no model: it answers long before the workers do.
        service.wait_ready(lambda: _ready(stack, settings.http_port))
        say("HTTP service", f"http://127.0.0.1:{settings.http_port}")
        for child, port in zip(started_workers, stack.metrics_ports, strict=True):
            child.wait_ready(partial(_ready, stack, port), _WORKER_START_S)
            say(child.name, f"metrics at http://127.0.0.1:{port}/metrics")
        yield stack


def _ready(stack: Stack, port: int) -> bool:
    stack.check_alive()
    return get(port, "/ready")[0] == 200


def _limner(name: str, command: str, environment: dict[str, str]) -> Child:
    return Child(name, [sys.executable, "-m", "streaming.cli", command], env=environment, in_own_folder=False)


def _environment(settings: Settings) -> dict[str, str]:
    """What the children must be told beside what they read from the environment and limner.toml themselves."""
    return {
        "LIMNER_KAFKA": settings.kafka,
        "LIMNER_REDIS": settings.redis,
        "LIMNER_HTTP_PORT": str(settings.http_port),
        "LIMNER_PACKS": json.dumps(settings.packs),
    }


def _http_port(settings: Settings, say: Say) -> int:
    wanted = settings.http_port
    if wanted and port_is_free(wanted):
        return wanted
    if wanted and "http_port" in settings.model_fields_set:
        raise StartFailed(f"HTTP port {wanted} is taken on this machine: choose another with --http-port")
    port = free_port()
    if wanted:
        say("HTTP port", f"{wanted} is taken on this machine: {port} it is")
    return port


def _require_store(settings: Settings) -> None:
    check = doctor.check_store(settings)
    if not check.ok:
        raise StoreUnavailable(f"{check.detail}; {check.fix}")
