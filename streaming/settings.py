"""One way to configure: `LIMNER_*` environment variables over `limner.toml` over these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, FilePath, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from model.files import default_cache_dir
from streaming.controls.types import PURPOSES, Purpose
from streaming.errors import SettingsError
from streaming.events.types import Limits, Source

TOML_FILE = "limner.toml"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _redis_url(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    import redis  # not before there is a URL to look at: it is slow to import

    try:
        redis.ConnectionPool.from_url(url).make_connection()  # connects to nothing yet
    except TypeError as error:
        raise ValueError(f"has an option that redis-py does not know: {str(error).split()[-1]}") from None
    except ValueError:  # its text can hold a part of the password
        raise ValueError("has a wrong port or option; / @ : in a password are written %2F %40 %3A") from None
    return url


def https_url(url: str) -> str:
    parts = urlsplit(url)
    if url and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError("must start with https:// (http:// only for this machine itself)")
    return url


class Settings(BaseSettings):
    """Every knob of every limner process. `limner doctor` prints the values in force."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_", toml_file=TOML_FILE, extra="forbid", frozen=True)

    # Kafka
    kafka: str = Field("127.0.0.1:9092", description="bootstrap servers, HOST:PORT[,HOST:PORT]")
    group: str = Field("limner", min_length=1, description="consumer group of the workers")
    chat_topic: str = "chat-events"
    order_topic: str = "order-events"
    delta_topic: str = "profile-deltas"
    dead_letter_topic: str = "dead-letters"
    control_topic: str = Field("customer-controls", description="links, consent and erasures (docs/privacy.md)")
    partitions: int = Field(4, ge=1, le=10_000, description="of topics that limner creates")
    replication: int = Field(1, ge=1, le=15, description="of topics that limner creates")
    compaction_s: float = Field(
        86_400.0, gt=0, description="of limner's topics: what was erased is compacted away after about this long"
    )
    session_timeout_s: float = Field(6.0, ge=6, le=300, description="a worker silent for this long is replaced")

    # How Kafka is reached: `streaming.access.kafka` turns these into each client's own options
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_user: str = ""
    kafka_password: SecretStr = SecretStr("")
    kafka_ca: FilePath | None = Field(None, description="PEM: who signs the brokers' certificates; else the system's")
    kafka_cert: FilePath | None = Field(None, description="PEM: the certificate that limner shows to brokers")
    kafka_key: FilePath | None = Field(None, description="PEM: its private key")

    # Store. A user, a password and TLS stand in the URL, as redis-py reads it (docs/security.md).
    redis: Annotated[str, AfterValidator(_redis_url)] = Field("redis://127.0.0.1:6379/0", repr=False)
    namespace: str = Field("lm", pattern=r"^[A-Za-z0-9_.-]{1,32}$", description="prefix of every key in Redis")
    store_timeout_s: float = Field(5.0, gt=0, le=60, description="one round trip to Redis may take this long")
    store_patience_s: float = Field(
        60.0, gt=0, description="a worker whose store or broker stays away longer ends itself, nothing acknowledged"
    )

    # Model
    model: str = Field("base", description='"base", a registry version, a folder, or a hub id')
    packs: list[str] = Field(["ecommerce"], min_length=1, description="label taxonomies in force")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    engines: int = Field(
        0, ge=0, le=64, description="processes that run the model; 0: as many as were measured to be best here"
    )
    torch_threads: int = Field(0, ge=0, le=256, description="of one engine; 0: as measured, else its share of cores")
    window_tokens: int = Field(
        0, ge=0, le=65_536, description="an engine takes texts in windows of at most this many tokens; 0: as measured"
    )
    window_ms: float = Field(2.0, ge=0, le=1000, description="a text waits at most this long for a window to fill")
    long_texts: Literal["head", "head+tail", "windows"] = Field(
        "head", description="of a text longer than 256 tokens: its beginning, both ends, or all of it in windows"
    )
    cache_mb: int = Field(64, ge=0, description="memory for answers to texts seen before; 0 turns it off")
    disk_cache_mb: int = Field(
        16, ge=0, description="on disk, in cache_dir, for answers to order descriptions, never chats; 0 turns it off"
    )
    cache_dir: Path = Field(default_factory=default_cache_dir)

    # Batches. Orders hardly touch the model: large batches buy throughput. Chats wait for the
    # model: a batch is what one forward pass handles well within the freshness aim of a second.
    order_batch: int = Field(256, ge=1, le=10_000)
    order_within_ms: float = Field(10.0, ge=0, le=10_000)
    chat_batch: int = Field(32, ge=1, le=10_000)
    chat_within_ms: float = Field(20.0, ge=0, le=10_000)

    # Events
    max_record_bytes: int = Field(1_048_576, ge=1024, description="a larger Kafka record is a dead letter")
    max_text_bytes: int = Field(16_384, ge=64, description="of a text this much is used, UTF-8")
    max_future_s: float = Field(300.0, ge=0, description="an event may be this far ahead of the clock")

    # Privacy (docs/privacy.md)
    consent_default: dict[Purpose, Literal["granted", "denied"]] = Field(
        {}, description="what counts for a customer who said nothing; purposes not named: granted"
    )
    retention_days: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="facet -> how long its labels are kept after their newest evidence; not named: as they fade"
    )
    receipt_key: SecretStr = Field(
        SecretStr(""), description="signs receipts of erasures; empty: a key of this machine's, made on first use"
    )

    # HTTP and metrics: loopback unless a key is set (see `lookup`).
    http_host: str = "127.0.0.1"
    http_port: int = Field(8080, ge=0, le=65535, description="0 takes a free one")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="of the worker's /metrics, on loopback; 0 takes a free one"
    )
    http_cert: FilePath | None = Field(None, description="PEM: the service's certificate chain; it then speaks HTTPS")
    http_key: FilePath | None = Field(None, description="PEM: its private key")
    http_client_ca: FilePath | None = Field(None, description="PEM: callers must show a certificate that it signed")

    # Who may call
    api_key: SecretStr = Field(SecretStr(""), description="one key that may do everything; see keys_file for more")
    keys_file: Path | None = Field(None, description="keys with scopes, kept by `limner keys`")
    rate_limit: float = Field(0, ge=0, description="requests a second of a caller whose key has no rate; 0: no limit")
    oidc_issuer: Annotated[str, AfterValidator(https_url)] = Field("", description="whose bearer tokens are taken")
    oidc_audience: str = Field("", description="tokens must be for this audience")
    oidc_jwks_url: Annotated[str, AfterValidator(https_url)] = Field("", description="empty: found by discovery")
    oidc_scopes_claim: str = Field("scope", min_length=1, description="the claim that lists a token's scopes")

    # Audit
    audit_file: Path | None = Field(None, description="audit lines are appended to it; else they go to the log")
    audit_hash_key: SecretStr = Field(
        SecretStr(""), description="customer ids in audit lines are hashed with it, else plainly"
    )
    sensitive_facets: list[str] = Field(["risk"], description="who reads labels of these is recorded")

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal")

    @property
    def admits_by_key(self) -> bool:
        """Whether callers of the HTTP service must say who they are."""
        return bool(self.api_key or self.keys_file or self.oidc_issuer)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        """A credential that is set and not used is a fault: someone believes that it protects."""
        sasl, tls = self.kafka_security.startswith("SASL"), self.kafka_security.endswith("SSL")
        faults = {
            "kafka_security with SASL needs kafka_user and kafka_password": sasl
            and not (self.kafka_user and self.kafka_password),
            "kafka_user and kafka_password need kafka_security SASL_SSL": not sasl
            and bool(self.kafka_user or self.kafka_password),
            "kafka_ca, kafka_cert and kafka_key need kafka_security SSL or SASL_SSL": not tls
            and bool(self.kafka_ca or self.kafka_cert or self.kafka_key),
            "kafka_cert and kafka_key need each other": bool(self.kafka_cert) != bool(self.kafka_key),
            "http_cert and http_key need each other": bool(self.http_cert) != bool(self.http_key),
            "http_client_ca needs http_cert and http_key": bool(self.http_client_ca) and not self.http_cert,
            "oidc_issuer and oidc_audience need each other": bool(self.oidc_issuer) != bool(self.oidc_audience),
            "oidc_jwks_url needs oidc_issuer": bool(self.oidc_jwks_url) and not self.oidc_issuer,
        }
        if found := [fault for fault, is_there in faults.items() if is_there]:
            raise ValueError("; ".join(found))
        return self

    @property
    def consent(self) -> dict[str, bool]:
        """Purpose -> whether a customer who said nothing grants it."""
        return {purpose: self.consent_default.get(purpose, "granted") == "granted" for purpose in PURPOSES}

    @property
    def retention_ms(self) -> dict[str, int]:
        return {facet: round(days * 86_400_000) for facet, days in self.retention_days.items()}

    def topic_of(self, source: Source) -> str:
        """Where the events of a source come in."""
        return self.chat_topic if source == "chat" else self.order_topic

    @property
    def limits(self) -> Limits:
        """What an event may be, wherever it comes in."""
        return Limits(max_record_bytes=self.max_record_bytes, max_future_ms=round(self.max_future_s * 1000))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def _told(fault: ErrorDetails) -> str:
    if not fault["loc"]:  # of several settings together, which the message names
        return fault["msg"]
    return f"{'.'.join(map(str, fault['loc']))} (LIMNER_{str(fault['loc'][0]).upper()} or {TOML_FILE}): {fault['msg']}"


def load(**overrides: object) -> Settings:
    """Read the settings in force.

    Raises:
        SettingsError: names each wrong setting, its value's fault, and where it came from.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith("LIMNER_") and name.removeprefix("LIMNER_").lower() not in Settings.model_fields
    )
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}: `limner doctor --settings` lists the known ones")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(f"wrong setting {'; '.join(map(_told, error.errors()))}") from None
    except ValueError as error:  # a limner.toml that is not TOML, a list that is not JSON
        raise SettingsError(f"settings can't be read: {error}") from None
