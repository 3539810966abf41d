"""The embedded servers and `limner up`: they answer, and nothing of them is left, however they end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from streaming.embedded.broker import Broker
from streaming.embedded.processes import Child, StartFailed
from streaming.embedded.readings import fresh_p99_s, parse
from streaming.embedded.store import Store


class Traces:
    """Processes that carry this test's mark in their environment, and its folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **bare_environment(), "UP_TEST": str(folder), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # a store writes its title over its environment, but sits in its folder
                ours = process.environ().get("UP_TEST") == str(self.folder) or str(self.folder) in process.cwd()
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def gone(self, within_s: float = 5.0) -> bool:
        """Whether all are gone in time: a kill takes effect when the kernel gets to it."""
        deadline = time.monotonic() + within_s
        while self.processes() or any(self.folder.iterdir()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[Traces]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    its = Traces(folder)
    yield its
    for process in its.processes():  # of a test that failed
        process.kill()


# Both servers, started from a thread that ends before they do: a death signal would end them with it.
_BOTH = """
import sys, threading, time
from streaming.embedded.broker import Broker
from streaming.embedded.store import Store
started = []
thread = threading.Thread(target=lambda: started.extend([Broker.start(), Store.start(appendonly=True)]))
thread.start()
thread.join()
time.sleep(0.3)
assert all(child.exit_code is None for child in started)
"""


@pytest.mark.parametrize(
    "way_out",
    ["end", "exception", signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
)
def test_nothing_is_left_however_the_parent_ends(way_out: str | signal.Signals, traces: Traces) -> None:
    last = {"end": "print('up')", "exception": "print('up'); 1 / 0"}.get(str(way_out), "print('up'); time.sleep(60)")
    parent = subprocess.Popen(
        [sys.executable, "-c", _BOTH + last], env=traces.environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    if isinstance(way_out, signal.Signals):
        assert len(traces.processes()) == 4  # itself, the two servers, the reaper
        parent.send_signal(way_out)
    parent.wait(10)
    assert traces.gone(), (traces.processes(), list(traces.folder.rglob("*")))


def test_servers_answer_on_loopback_only(broker: Broker, store: Store) -> None:
    for child in (broker, store):
        listening = [
            connection.laddr
            for connection in psutil.Process(child.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert {address.ip for address in listening} == {"127.0.0.1"}
    with redis.Redis.from_url(store.url) as client:
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        assert client.config_get("save") == {"save": ""}


def test_store_keeps_its_log_over_a_kill() -> None:
    with Store.start(appendonly=True) as store, redis.Redis.from_url(store.url) as client:
        client.config_set("appendfsync", "always")
        client.set("kept", "1")
        first = store.pid
        store.kill()
        assert store.exit_code == -signal.SIGKILL
        store.restart()
        store.wait_answering()
        assert store.pid != first
        assert client.get("kept") == b"1"
        folder = store.folder
    assert not folder.exists()


def test_failed_start_shows_the_end_of_the_log() -> None:
    child = Child("thing", [sys.executable, "-c", "print('no such file: x'); raise SystemExit(3)"])
    with pytest.raises(StartFailed, match=r"thing ended with code 3; the end of its log:\nno such file: x"):
        child.wait_ready(lambda: False)
    assert not child.folder.exists()
    with pytest.raises(StartFailed, match="thing can't be started: /nowhere"):
        Child("thing", ["/nowhere"])


def test_silent_start_is_given_up() -> None:
    child = Child("thing", ["sleep", "60"])
    with pytest.raises(StartFailed, match="thing did not answer within 0 s"):
        child.wait_ready(lambda: False, timeout_s=0.2)
    assert child.exit_code == -signal.SIGTERM


def test_port_of_another_server_does_not_count_as_ready(store: Store, broker: Broker) -> None:
    """A server that could not have its port ends, while whoever has the port answers."""
    store_port = int(store.url.rpartition(":")[2].partition("/")[0])
    for second in (Store(store_port, appendonly=False), Broker(int(broker.bootstrap.partition(":")[2]))):
        with pytest.raises(StartFailed, match=r"(?i)in ?use"):
            second.wait_answering()


def test_stop_ends_a_child_that_ignores_sigterm_and_its_children(traces: Traces) -> None:
    script = "import signal, subprocess, time\nsignal.signal(15, signal.SIG_IGN)\nsubprocess.Popen(['sleep', '60'])\n"
    child = Child("stubborn", [sys.executable, "-c", script + "print('up', flush=True)\ntime.sleep(60)"],
                  env=traces.environment)  # fmt: skip
    child.grace_s = 0.2
    child.wait_ready(lambda: "up" in child.tail())
    child.stop()
    assert child.exit_code == -signal.SIGKILL
    assert traces.gone()


def test_readings_of_two_workers_are_summed() -> None:
    page = _page(fresh=[0.004] * 99 + [0.9])
    before, now = parse([_page(fresh=[]), _page(fresh=[])]), parse([page, page])
    assert (now.events["order"], now.profiles, now.lag, now.dead_letters) == (200, 14, 6, 2)
    # 198 of 200 lie at or below 0.005 s, and rank 198 is the 99th percentile
    assert fresh_p99_s(before, now, "order") == pytest.approx(0.005)
    assert fresh_p99_s(now, now, "order") is None
    assert parse([b"".decode()]).lag is None


def test_freshness_is_of_the_window_alone_and_interpolated() -> None:
    slow, later = _page(fresh=[5.0] * 100), _page(fresh=[5.0] * 100 + [0.15] * 100)
    # All 100 of the window lie between 0.1 and 0.2 s: rank 99 of 100 is 99 % of the way.
    assert fresh_p99_s(parse([slow]), parse([later]), "order") == pytest.approx(0.199)


def _page(fresh: list[float]) -> str:
    """A worker's /metrics after orders of these freshnesses."""
    registry = CollectorRegistry()
    Counter("limner_events_total", "", ["source"], registry=registry).labels("order").inc(len(fresh))
    Counter("limner_dead_letters_total", "", ["source", "reason"], registry=registry).labels("order", "x").inc(1)
    Gauge("limner_profiles", "", registry=registry).set(7)
    lag = Gauge("limner_lag_records", "", ["topic", "partition"], registry=registry)
    lag.labels("t", 0).set(1)
    lag.labels("t", 1).set(2)
    seconds = Histogram("limner_freshness_seconds", "", ["source"], registry=registry,
                        buckets=(0.005, 0.1, 0.2, 1.0))  # fmt: skip
    for value in fresh:
        seconds.labels("order").observe(value)
    return generate_latest(registry).decode()


class Up:
    """`limner up` as a user runs it, in a process of its own; leaves nothing behind if a test fails."""

    def __init__(self, traces: Traces, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streaming.cli", "up", *arguments], env=traces.environment, cwd=traces.folder.parent,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read_until(self, pattern: str) -> str:
        """The first line from here on that has `pattern`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"ended without {pattern!r}: {''.join(self.lines)}{self.process.communicate()[1]}")

    def printed_commands(self) -> list[str]:
        self.read_until("From another terminal")
        self.read_until("^$")
        return [line.strip() for line in self.lines if line.startswith("  ")]

    def end(self, within_s: float = 60) -> tuple[int, str, str]:
        """(exit code, the last line of stdout, stderr) once it ends."""
        out, err = self.process.communicate(timeout=within_s)
        return self.process.returncode, (out or "".join(self.lines)).splitlines()[-1], err

    def __enter__(self) -> Up:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # the reaper does the rest
        self.process.communicate()


@pytest.mark.timeout(900)  # two thousand chats through the model: a minute on two idle cores, many on busy ones
def test_demo_reaches_the_profiles_and_the_printed_commands_work(traces: Traces) -> None:
    with Up(traces, "--demo", "--until-fed", "--http-port", "0", "--pace", "500") as up:
        curl, show, explain, _ = up.printed_commands()
        assert shlex.split(curl)[0] == "curl"
        address = shlex.split(curl)[1]
        customer = address.rpartition("/")[2]
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert json.load(answer)["customer_id"] == customer
        for command, said in ((show, customer), (explain, "newest events")):
            done = subprocess.run(
                command, shell=True, env=bare_environment(), capture_output=True, text=True, timeout=30
            )
            assert (done.returncode, done.stderr) == (0, ""), command
            assert said in done.stdout
        code, last, err = up.end(within_s=800)
    assert (code, err) == (0, "")
    assert last.startswith("ended")
    assert traces.gone(), traces.processes()


def test_ctrl_c_is_the_normal_way_out_and_the_users_servers_stay(traces: Traces, broker: Broker, store: Store) -> None:
    arguments = ["--kafka", broker.bootstrap, "--redis", store.url, "--http-port", "0"]
    with Up(traces, *arguments) as up:
        assert len(up.printed_commands()) == 4
        assert not any(line.startswith("broker") for line in up.lines)
        up.process.send_signal(signal.SIGINT)
        code, last, err = up.end()
    assert (code, err) == (0, "")
    assert last.startswith("ended")
    assert traces.gone(), traces.processes()
    assert (broker.exit_code, store.exit_code) == (None, None)


def test_a_child_that_dies_is_named_and_ends_the_rest(traces: Traces) -> None:
    with Up(traces, "--http-port", "0") as up:
        up.read_until("^HTTP service")  # while the worker still loads its model
        (service,) = [
            process for process in psutil.Process(up.process.pid).children() if process.cmdline()[-1:] == ["serve"]
        ]
        service.kill()
        code, _, err = up.end()
    assert code == 1
    assert err.startswith(f"limner: HTTP service ended with code {-signal.SIGKILL}; the end of its log:\n")
    assert traces.gone(), traces.processes()


def test_taken_http_port(traces: Traces) -> None:
    """One that was asked for is an error; the default one is only a default."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with Up(traces, "--http-port", port) as up:
            code, _, err = up.end()
    assert (code, err) == (
        1, f"limner: HTTP port {port} is taken on this machine: choose another with --http-port\n",
    )  # fmt: skip
    assert traces.gone()


def bare_environment() -> dict[str, str]:
    """Another terminal's: it was told nothing of limner."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
