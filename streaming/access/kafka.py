"""How Kafka is reached, once for all clients: each function turns the settings into one library's options."""

from __future__ import annotations

import ssl
from typing import Any

from streaming.errors import SettingsError
from streaming.settings import Settings


def librdkafka_options(settings: Settings) -> dict[str, Any]:
    """For confluent-kafka; the bootstrap address among them."""
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka,
        "security.protocol": settings.kafka_security,
        "ssl.ca.location": settings.kafka_ca,
        "ssl.certificate.location": settings.kafka_cert,
        "ssl.key.location": settings.kafka_key,
    }
    if _sasl(settings):
        options |= {
            "sasl.mechanism": settings.kafka_sasl,
            "sasl.username": settings.kafka_user,
            "sasl.password": settings.kafka_password.get_secret_value(),
        }
    return {name: str(value) for name, value in options.items() if value is not None}


def python_options(settings: Settings) -> dict[str, Any]:
    """For kafka-python and aiokafka, which share their names; the bootstrap address among them.

    Raises:
        SettingsError: a certificate or key can't be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka.split(","),
        "security_protocol": settings.kafka_security,
        "ssl_context": _tls(settings),
    }
    if _sasl(settings):
        options |= {
            "sasl_mechanism": settings.kafka_sasl,
            "sasl_plain_username": settings.kafka_user,
            "sasl_plain_password": settings.kafka_password.get_secret_value(),
        }
    return options


def faust_credentials(settings: Settings) -> Any:
    """For a Faust application's `broker_credentials`; None where Kafka asks for nothing.

    Raises:
        SettingsError: a certificate or key can't be read.
    """
    import faust.auth  # HTTP and command line come by here without Faust

    tls = _tls(settings)
    if _sasl(settings):
        return faust.auth.SASLCredentials(
            username=settings.kafka_user,
            password=settings.kafka_password.get_secret_value(),
            mechanism=settings.kafka_sasl,
            ssl_context=tls,
        )
    return faust.auth.SSLCredentials(tls) if tls else None


def _sasl(settings: Settings) -> bool:
    return settings.kafka_security.startswith("SASL")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.kafka_security.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca)
        if settings.kafka_cert:
            context.load_cert_chain(settings.kafka_cert, settings.kafka_key)
    except OSError as error:  # ssl.SSLError among them
        raise SettingsError(f"kafka_ca, kafka_cert or kafka_key can't be used: {error}") from None
    return context
