"""One way to configure: `LIMNER_*` environment variables over `limner.toml` over these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from model.files import default_cache_dir
from streaming.errors import SettingsError
from streaming.events.types import Limits

TOML_FILE = "limner.toml"


def _known_scheme(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
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
    partitions: int = Field(4, ge=1, le=10_000, description="of topics that limner creates")
    replication: int = Field(1, ge=1, le=15, description="of topics that limner creates")
    session_timeout_s: float = Field(6.0, ge=6, le=300, description="a worker silent for this long is replaced")

    # Store
    redis: Annotated[str, AfterValidator(_known_scheme)] = "redis://127.0.0.1:6379/0"
    namespace: str = Field("lm", pattern=r"^[A-Za-z0-9_.-]{1,32}$", description="prefix of every key in Redis")
    store_timeout_s: float = Field(5.0, gt=0, le=60, description="one round trip to Redis may take this long")
    store_patience_s: float = Field(
        60.0, gt=0, description="a worker whose store or broker stays away longer ends itself, nothing acknowledged"
    )

    # Model
    model: str = Field("base", description='"base", a registry version, a folder, or a hub id')
    packs: list[str] = Field(["ecommerce"], min_length=1, description="label taxonomies in force")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    torch_threads: int = Field(0, ge=0, le=256, description="threads of one forward pass; 0 lets torch choose")
    cache_mb: int = Field(64, ge=0, description="memory for embeddings of texts seen before; 0 turns it off")
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

    # HTTP and metrics: loopback unless a key is set (see `lookup`).
    http_host: str = "127.0.0.1"
    http_port: int = Field(8080, ge=0, le=65535, description="0 takes a free one")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="of the worker's /metrics, on loopback; 0 takes a free one"
    )
    api_key: str = Field("", description="callers send it as `Authorization: Bearer KEY`; needed off loopback")

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal")

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
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))} (LIMNER_{str(fault['loc'][0]).upper()} or {TOML_FILE}): {fault['msg']}"
            for fault in error.errors()
        )
        raise SettingsError(f"wrong setting {faults}") from None
    except ValueError as error:  # a limner.toml that is not TOML, a list that is not JSON
        raise SettingsError(f"settings can't be read: {error}") from None
