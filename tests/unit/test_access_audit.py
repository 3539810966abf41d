"""The audit: what is written, where, of whom, and what happens when it can't be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from streaming.access import audit
from streaming.access.callers import Caller
from streaming.profiles.keys import erased_name
from streaming.profiles.view import Profile
from streaming.settings import load
from tests.stored import profile

NOW = 1_700_000_000_000
DAY = 86_400_000
CALLER = Caller("key:0a1b2c3d", frozenset({"read"}))


def of(customer_id: str, *facets: str) -> Profile:
    labels = {facet: [DAY, {"x": [1, NOW, 1, "m1", ["e1"]]}] for facet in facets}
    stored = profile(customer_id, NOW, {"chat": {"n": 1, "t": NOW, "l": labels}})
    return Profile.from_bytes(stored, NOW)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_reading_a_sensitive_facet_is_recorded_and_reading_others_is_not(file: Path) -> None:
    settings = load(audit_file=file, sensitive_facets=["risk", "health"])
    audit.read(settings, CALLER, [of("c1", "interests")])
    assert not file.exists()
    audit.read(settings, CALLER, [of("c1", "interests"), of("c2", "risk", "interests"), of("c3", "health")])
    (line,) = lines(file)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "event": "read", "caller": CALLER.id, "namespace": "lm", "facets": ["health", "risk"],
        "customers": [erased_name("c2"), erased_name("c3")],
    }  # fmt: skip


def test_with_a_key_customers_are_told_apart_and_not_named(file: Path) -> None:
    def customers(key: str) -> list[str]:
        file.unlink(missing_ok=True)
        audit.record(load(audit_file=file, audit_hash_key=key), CALLER, "erase", ["c1", "c2", "c1"])
        found: list[str] = lines(file)[0]["customers"]
        return found

    first, other = customers("k1"), customers("k2")
    assert first[0] == first[2] != first[1]
    assert not {"c1", "c2"} & set(first)
    assert not set(first) & set(other)


def test_lines_are_only_ever_added_also_by_several_at_once(file: Path) -> None:
    file.write_text('{"event": "before"}\n')
    settings = load(audit_file=file)
    threads = [
        threading.Thread(target=lambda: [audit.record(settings, CALLER, "read", ["c" * 128] * 50) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(file)
    assert found[0] == {"event": "before"}
    assert len(found) == 201


def test_a_file_that_was_moved_away_is_made_anew_for_its_owner_alone(file: Path) -> None:
    settings = load(audit_file=file)
    audit.record(settings, CALLER, "read")
    file.rename(file.with_suffix(".1"))
    audit.record(settings, CALLER, "erase")
    assert [line["event"] for line in lines(file)] == ["erase"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_can_not_be_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(audit.AuditFailed, match="audit_file"):
        audit.record(load(audit_file=tmp_path / "absent" / "audit"), CALLER, "read")
    with pytest.raises(audit.AuditFailed, match="No space left"):
        audit.record(load(audit_file=Path("/dev/full")), CALLER, "read")


def test_without_a_file_it_goes_to_the_log_even_of_a_quiet_process() -> None:
    script = (
        "from streaming import logs, settings; from streaming.access import audit; from streaming.access.callers "
        "import Caller; s = settings.load(); logs.configure(s); "
        "audit.record(s, Caller('key:1', frozenset()), 'erase', ['c1'], records=3); "
        "logs.get('other').info('not this')"
    )
    env = {**os.environ, "LIMNER_LOG_LEVEL": "error", "LIMNER_LOG_FORMAT": "json"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line.pop("timestamp")
    assert line == {
        "event": "erase", "caller": "key:1", "namespace": "lm", "customers": [erased_name("c1")], "records": 3,
        "logger": "limner.audit", "level": "info",
    }  # fmt: skip
