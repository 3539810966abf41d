"""A wrong setting stops the start, and says which, why, and what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streaming import doctor
from streaming.errors import SettingsError
from streaming.settings import Settings, load


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No limner.toml, no LIMNER_ variable but a test's own."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("LIMNER_"):
            monkeypatch.delenv(name)
    return tmp_path


def test_environment_over_file_over_defaults(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "limner.toml").write_text('kafka = "file:1"\nchat_batch = 7\npacks = ["finance"]\n')
    monkeypatch.setenv("LIMNER_KAFKA", "environment:1")
    settings = load()
    assert (settings.kafka, settings.chat_batch, settings.packs) == ("environment:1", 7, ["finance"])
    assert settings.order_batch == Settings.model_fields["order_batch"].default
    assert load(kafka="argument:1").kafka == "argument:1"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("LIMNER_PARTITIONS", "0", "greater than or equal to 1"),
        ("LIMNER_PARTITIONS", "many", "valid integer"),
        ("LIMNER_HTTP_PORT", "65536", "less than or equal to 65535"),
        ("LIMNER_REDIS", "http://127.0.0.1", "redis://, rediss:// or unix://"),
        ("LIMNER_NAMESPACE", "a b", "should match pattern"),
        ("LIMNER_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LIMNER_DEVICE", "gpu", "cpu|cuda"),
        ("LIMNER_PACKS", "[]", "at least 1 item"),
        ("LIMNER_PACKS", "ecommerce", "packs"),  # a list is written in JSON
    ],
)
def test_wrong_value_names_variable_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as fault:
        load()
    text = str(fault.value)
    assert allowed in text
    assert name.removeprefix("LIMNER_").lower() in text.lower()
    assert "\n" not in text


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_PARTITIONS", "0")
    monkeypatch.setenv("LIMNER_HTTP_PORT", "-1")
    with pytest.raises(SettingsError, match=r"LIMNER_PARTITIONS.*LIMNER_HTTP_PORT"):
        load()


def test_unknown_variable_is_an_error_not_a_silent_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_KAFFKA", "127.0.0.1:1")
    with pytest.raises(SettingsError, match="unknown setting LIMNER_KAFFKA"):
        load()


@pytest.mark.parametrize("content", ['kaffka = "x"', "kafka = ", "partitions = 0"])
def test_wrong_file_names_the_file(content: str, bare: Path) -> None:
    (bare / "limner.toml").write_text(content)
    with pytest.raises(SettingsError, match=r"limner\.toml|settings can't be read"):
        load()


def test_listed_settings_hide_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_API_KEY", "s3cret-key")
    monkeypatch.setenv("LIMNER_REDIS", "rediss://user:s3cret-pw@store:6380/1")
    rows = {row["name"]: row for row in doctor.settings_table(load())}
    assert "s3cret" not in str(rows)
    assert rows["LIMNER_REDIS"]["value"] == "rediss://user:***@store:6380/1"
    assert set(rows) == {f"LIMNER_{name.upper()}" for name in Settings.model_fields}
    assert rows["LIMNER_PARTITIONS"] == {
        "name": "LIMNER_PARTITIONS", "value": 4, "default": 4, "description": "of topics that limner creates",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@h:1/0", "redis://:***@h:1/0"),
        ("redis://user:p:w@h", "redis://user:***@h"),
        ("redis://user@h:1", "redis://user@h:1"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:p@w@h:1", "redis://:***@h:1"),
        ("redis://:p/w@h:1", "redis://:***@h:1"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    assert doctor.masked(url) == shown
