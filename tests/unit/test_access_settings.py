"""Settings of security: what contradicts, what is not used, and what must not be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming import doctor
from streaming.errors import SettingsError
from streaming.settings import load


def test_settings_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    wrong: list[tuple[dict[str, object], str]] = [
        ({"kafka_security": "SASL_SSL"}, "needs kafka_user"),
        ({"kafka_password": "p"}, "need kafka_security SASL_SSL"),
        ({"kafka_ca": pem}, "need kafka_security SSL"),
        ({"kafka_security": "SSL", "kafka_cert": pem}, "kafka_cert and kafka_key"),
        ({"http_cert": pem}, "http_cert and http_key"),
        ({"http_client_ca": pem}, "http_client_ca needs"),
        ({"oidc_issuer": "https://i"}, "oidc_audience"),
        ({"oidc_issuer": "http://issuer.example"}, "https://"),
        ({"kafka_ca": tmp_path / "absent"}, "LIMNER_KAFKA_CA"),
        ({"redis": "rediss://h:1/0?ssl_ca_cert=/x"}, "'ssl_ca_cert'"),
    ]
    for fields, said in wrong:
        with pytest.raises(SettingsError) as fault:
            load(**fields)
        assert said in str(fault.value) and "\n" not in str(fault.value)


def test_a_url_that_can_not_be_read_shows_no_part_of_its_password() -> None:
    with pytest.raises(SettingsError) as fault:
        load(redis="redis://:s3c/ret@h:1/0")
    assert "s3c" not in str(fault.value) and "%2F" in str(fault.value)


def test_secrets_are_in_no_listing_and_no_representation() -> None:
    secrets = ("s3cret-api", "s3cret-kafka", "s3cret-audit", "s3cret-redis")
    settings = load(
        api_key=secrets[0], kafka_security="SASL_SSL", kafka_user="u", kafka_password=secrets[1],
        audit_hash_key=secrets[2], redis=f"redis://user:{secrets[3]}@127.0.0.1:1/0",
    )  # fmt: skip
    for shown in (repr(settings), str(settings), str(doctor.settings_table(settings)), settings.model_dump_json()):
        assert [secret for secret in secrets[:3] if secret in shown] == []
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(doctor.settings_table(settings))
