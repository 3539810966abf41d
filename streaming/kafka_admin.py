"""Topics: create the missing ones, verify the others, and name each one's incarnation."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, KafkaAdminClient, NewTopic
from kafka.errors import KafkaError

from streaming.access.kafka import python_options
from streaming.errors import BrokerUnavailable, LimnerError
from streaming.settings import Settings

# A broker on another continent answers within a second; a person at a prompt waits three.
BOOTSTRAP_MS = 3_000
# Creating topics waits for the controller of a cluster that may be electing one.
REQUEST_MS = 15_000
# 8 hex digits: two incarnations of one topic share them once in 4,000 million, and the fence stays short.
EPOCH_DIGITS = 8

_TOPIC_AUTHORIZATION_FAILED = 29
_TOPIC_ALREADY_EXISTS = 36  # another process was quicker: as good as having created it


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as the broker has it; `partitions` is 0 and `epoch` empty where it is missing."""

    topic: str
    partitions: int
    wanted: int
    epoch: str
    created: bool = False

    @property
    def missing(self) -> bool:
        return self.partitions == 0

    @property
    def fault(self) -> str | None:
        """What differs from the settings, with what mends it; None where nothing does."""
        if self.missing:
            return "missing: run `limner topics`"
        if self.partitions != self.wanted:
            # Left alone: more partitions would move customers to other partitions in mid-stream.
            return (
                f"settings say {self.wanted} partitions, it has {self.partitions}: "
                f"set LIMNER_PARTITIONS={self.partitions}, or stop all producers and create the topic again"
            )
        return None


def connect(settings: Settings) -> KafkaAdminClient:
    """An admin client that has reached the broker; the caller closes it.

    Raises:
        BrokerUnavailable: within about `BOOTSTRAP_MS`, naming the address and what to check.
    """
    try:
        return KafkaAdminClient(
            **python_options(settings),
            client_id="limner-admin",
            bootstrap_timeout_ms=BOOTSTRAP_MS,
            request_timeout_ms=REQUEST_MS,
        )
    except (KafkaError, ValueError, OSError) as error:
        fix = "start it there, or set LIMNER_KAFKA to HOST:PORT of one that runs"
        if settings.kafka_security != "PLAINTEXT":  # the client does not say which of both it was
            fix += (
                f"; if one does, it refuses this client by {settings.kafka_security}: see LIMNER_KAFKA_SECURITY, "
                "LIMNER_KAFKA_SASL, LIMNER_KAFKA_USER and its password, LIMNER_KAFKA_CA, LIMNER_KAFKA_CERT"
            )
        raise BrokerUnavailable(f"no Kafka at {settings.kafka}: {fix} ({type(error).__name__})") from None


def ensure_topics(settings: Settings, *, create: bool = True) -> list[TopicState]:
    """Create the missing ones of limner's five topics (not with `create=False`) and verify the others.

    Returns one state a topic: chats, orders, deltas, dead letters, controls. An existing topic is never changed.

    Raises:
        BrokerUnavailable: no broker, or it refused a topic (the message says which and why).
    """
    # Compacted, with a key for each record: nothing goes but what is deleted by name, which an erasure does.
    # A segment that is written to is not compacted, nor does a deletion's own record go before `delete.retention.ms`.
    within = str(round(settings.compaction_s * 1000))
    erasable = {"max.compaction.lag.ms": within, "segment.ms": within, "delete.retention.ms": within}
    # Deltas and controls are what a lost store is rebuilt from, so they are kept for good.
    kept = {"cleanup.policy": "compact", "retention.ms": "-1", **erasable}
    wanted: dict[str, dict[str, str]] = {
        settings.chat_topic: {},
        settings.order_topic: {},
        settings.delta_topic: kept,
        settings.dead_letter_topic: {"cleanup.policy": "compact,delete", **erasable},
        settings.control_topic: kept,
    }
    with closing(connect(settings)) as admin:
        try:
            found = _describe(admin, settings, wanted)
            missing = [topic for topic in wanted if topic not in found]
            if missing and create:
                _create(admin, settings, {topic: wanted[topic] for topic in missing})
                found = _describe(admin, settings, wanted)
        except KafkaError as error:
            raise BrokerUnavailable(f"Kafka at {settings.kafka} refused to list or create topics: {error}") from None
    return [
        TopicState(
            topic=topic,
            partitions=len(found[topic]["partitions"]) if topic in found else 0,
            wanted=settings.partitions,
            epoch=_epoch(found[topic]) if topic in found else "",
            created=create and topic in missing and topic in found,
        )
        for topic in wanted
    ]


def topic_epochs(settings: Settings, topics: Iterable[str]) -> dict[str, str]:
    """topic -> its epoch: the last `EPOCH_DIGITS` hex digits of the id that Kafka gave this incarnation.

    Raises:
        BrokerUnavailable: no broker.
        LimnerError: a topic does not exist.
    """
    topics = list(topics)
    with closing(connect(settings)) as admin:
        try:
            found = _describe(admin, settings, topics)
        except KafkaError as error:
            raise BrokerUnavailable(f"Kafka at {settings.kafka} refused to list topics: {error}") from None
    if missing := [topic for topic in topics if topic not in found]:
        raise LimnerError(f"no topic {', '.join(missing)} at {settings.kafka}: run `limner topics`")
    return {topic: _epoch(found[topic]) for topic in topics}


def retention_ms(settings: Settings, topics: Iterable[str]) -> dict[str, int | None]:
    """topic -> how long the broker keeps its records, ms; -1: for ever; None: it does not say (the embedded one).

    Raises:
        BrokerUnavailable
    """
    topics = list(topics)
    with closing(connect(settings)) as admin:
        try:
            found = admin.describe_configs([ConfigResource("TOPIC", topic) for topic in topics])["topic"]
        except KafkaError as error:
            raise BrokerUnavailable(f"Kafka at {settings.kafka} refused to describe topics: {error}") from None
    told = {topic: found.get(topic, {}).get("retention.ms", {}).get("value") for topic in topics}
    return {topic: None if value is None else int(value) for topic, value in told.items()}


def _describe(admin: KafkaAdminClient, settings: Settings, topics: Iterable[str]) -> dict[str, Any]:
    # An unknown topic comes back with an error code and without partitions.
    described = admin.describe_topics(list(topics))
    if hidden := [found["name"] for found in described if found["error_code"] == _TOPIC_AUTHORIZATION_FAILED]:
        who = f"user {settings.kafka_user}" if settings.kafka_user else "this client"
        raise BrokerUnavailable(
            f"Kafka at {settings.kafka} does not show {', '.join(hidden)} to {who}: "
            f"allow it Describe on them (deploy/acl/kafka.sh)"
        )
    return {found["name"]: found for found in described if found["partitions"]}


def _create(admin: KafkaAdminClient, settings: Settings, configs: dict[str, dict[str, str]]) -> None:
    answer = admin.create_topics(
        [
            NewTopic(topic, settings.partitions, settings.replication, topic_configs=config)
            for topic, config in configs.items()
        ],
        raise_errors=False,
    )
    refused = [
        f"{topic['name']}: {topic['error_message'] or 'error code ' + str(topic['error_code'])}"
        for topic in answer["topics"]
        if topic["error_code"] not in (0, _TOPIC_ALREADY_EXISTS)
    ]
    if refused:
        raise BrokerUnavailable(
            f"Kafka at {settings.kafka} refused to create {'; '.join(refused)} (LIMNER_PARTITIONS="
            f"{settings.partitions}, LIMNER_REPLICATION={settings.replication}; or create the topic by hand)"
        )
    admin.wait_for_topics(list(configs))  # the answer comes before all brokers know of them


def _epoch(description: dict[str, Any]) -> str:
    return str(description["topic_id"]).replace("-", "")[-EPOCH_DIGITS:]
