"""`limner doctor` finds what would break or lose something, and says what mends it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from streaming import doctor, kafka_admin
from streaming.embedded.broker import Broker
from streaming.embedded.processes import free_port
from streaming.embedded.store import Store
from streaming.settings import Settings, load


def run(cwd: Path, **environment: str) -> tuple[int, dict[str, doctor.Check]]:
    """(exit code, checks by name) of `limner doctor --json`, told nothing but `environment`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    done = subprocess.run(
        [sys.executable, "-m", "streaming.cli", "doctor", "--json"], env={**inherited, **environment}, cwd=cwd,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    checks = {check["name"]: doctor.Check(**check) for check in answer["checks"]}
    failed = [check.name for check in checks.values() if not check.ok]
    assert answer["ok"] == (not failed)
    assert done.stderr == (f"limner: doctor found faults in: {', '.join(failed)}\n" if failed else "")
    return done.returncode, checks


def test_running_servers_pass(tmp_path: Path, broker: Broker, store: Store) -> None:
    kafka_admin.ensure_topics(load(kafka=broker.bootstrap))
    code, checks = run(tmp_path, LIMNER_KAFKA=broker.bootstrap, LIMNER_REDIS=store.url, LIMNER_MODEL=str(tmp_path))
    assert code == 0, checks
    assert list(checks) == [
        "settings",
        "python",
        "memory",
        "http",
        "broker",
        "topics",
        "store",
        "clock",
        "packs",
        "model",
        "engines",
    ]
    assert "appendonly yes" in checks["store"].fix  # the embedded store keeps nothing: a warning
    assert "chat-events, order-events" in checks["topics"].detail


def test_absent_servers_and_model_fail_with_what_mends_them(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    code, checks = run(
        tmp_path, LIMNER_KAFKA=nowhere, LIMNER_REDIS=f"redis://:s3cret@{nowhere}", LIMNER_CACHE_DIR=str(tmp_path / "c")
    )
    assert code == 1
    assert [name for name, check in checks.items() if not check.ok] == ["broker", "topics", "store", "clock", "model"]
    assert nowhere in checks["broker"].detail and "LIMNER_KAFKA" in checks["broker"].fix
    assert nowhere in checks["store"].detail and "LIMNER_REDIS" in checks["store"].fix
    assert "s3cret" not in str(checks)


def test_servers_that_hang_do_not_hold_up_the_rest(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        code, checks = run(
            tmp_path, LIMNER_KAFKA=address, LIMNER_REDIS=f"redis://{address}", LIMNER_MODEL=str(tmp_path)
        )
        took_s = time.monotonic() - started
    assert code == 1
    assert [name for name, check in checks.items() if not check.ok] == ["broker", "topics", "store", "clock"]
    assert took_s < doctor.TIMEOUT_S + 4  # all hang at once; the rest is Python's start


def test_a_check_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 1.0)  # below what the Kafka client waits on its own
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("LIMNER_KAFKA", f"127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        checks = {check.name: check for check in doctor.run(deep=False)}
        assert time.monotonic() - started < 2.5
    assert not checks["broker"].ok and "no answer within 1 s" in checks["broker"].detail
    assert list(checks)[-2:] == ["model", "engines"]


def test_missing_and_differing_topics(tmp_path: Path) -> None:
    with Broker.start() as broker:
        settings = load(kafka=broker.bootstrap)
        missing = doctor.check_topics(settings)
        assert (missing.ok, missing.fix) == (False, "limner topics")
        assert "chat-events missing" in missing.detail
        kafka_admin.ensure_topics(settings)
        assert doctor.check_topics(settings).ok
        differing = doctor.check_topics(settings.model_copy(update={"partitions": 8}))
        assert not differing.ok and "LIMNER_PARTITIONS" in differing.detail + differing.fix


def test_wrong_setting_is_a_finding(tmp_path: Path) -> None:
    code, checks = run(tmp_path, LIMNER_PARTITIONS="0")
    assert (code, list(checks)) == (1, ["settings"])
    assert "LIMNER_PARTITIONS" in checks["settings"].detail


def test_the_list_of_settings_survives_a_wrong_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streaming.cli", "doctor", "--settings"], cwd=tmp_path,
        env={**os.environ, "LIMNER_KAFFKA": "x"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown setting LIMNER_KAFFKA" in done.stderr
    assert {line.partition(" = ")[0] for line in done.stdout.splitlines()} == {
        f"LIMNER_{name.upper()}" for name in Settings.model_fields
    }


@pytest.fixture
def info(store: Store) -> Iterator[dict[str, Any]]:
    with redis.Redis.from_url(store.url) as client:
        yield client.info("everything")


@pytest.mark.parametrize(
    ("changed", "ok", "said"),
    [
        ({"aof_enabled": 1}, True, "append-only file"),
        ({}, True, "no append-only file"),
        ({"maxmemory_policy": "allkeys-lru"}, False, "would drop profiles"),
        ({"maxmemory_policy": "volatile-ttl"}, False, "would drop profiles"),
        ({"role": "slave"}, False, "takes no writes"),
        ({"redis_version": "6.0.16"}, False, "6.0.16"),
    ],
)
def test_store_findings(info: dict[str, Any], changed: dict[str, Any], ok: bool, said: str) -> None:
    info.pop("valkey_version") if "redis_version" in changed else None
    check = doctor.judge_store({**info, **changed})
    assert (check.ok, said in check.detail) == (ok, True), check
    assert bool(check.fix) == (changed != {"aof_enabled": 1})


def test_store_that_forbids_scripts(store: Store) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.acl_setuser("timid", enabled=True, passwords=["+pw"], commands=["+info", "+ping", "-eval"], keys=["*"])
        check = doctor.check_store(load(redis=store.url.replace("redis://", "redis://timid:pw@")))
        client.acl_deluser("timid")
    assert not check.ok
    assert "eval" in check.detail.lower() and "pw@" not in check.detail


@pytest.mark.parametrize(("ahead_s", "ok", "warns"), [(0.2, True, False), (-1.5, True, True), (6.0, False, True)])
def test_clock(ahead_s: float, ok: bool, warns: bool) -> None:
    check = doctor.judge_clock(ahead_s)
    assert (check.ok, bool(check.fix)) == (ok, warns)
    assert f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'}" in check.detail


@pytest.mark.parametrize(
    ("host", "key", "ok"),
    [
        ("127.0.0.1", "", True),
        ("localhost", "", True),
        ("::1", "", True),
        ("0.0.0.0", "", False),
        ("0.0.0.0", "k", True),
    ],
)
def test_http_needs_a_key_off_loopback(host: str, key: str, ok: bool) -> None:
    check = doctor.check_http(load(http_host=host, api_key=key))
    assert check.ok == ok
    assert "LIMNER_API_KEY" in check.fix or ok


def test_a_check_that_fails_unexpectedly_is_a_finding_not_a_crash() -> None:
    def broken(_: Settings) -> doctor.Check:
        raise ZeroDivisionError("by zero")

    check = doctor._in_thread("thing", broken, load()).get(timeout=5)
    assert (check.ok, check.detail) == (False, "ZeroDivisionError: by zero")
