"""Controls on their way to Kafka."""

from __future__ import annotations

import time
import uuid

from confluent_kafka import KafkaException

from streaming.controls.types import Control, encode, record_key
from streaming.errors import BrokerUnavailable
from streaming.intake.async_send import DELIVERY_S, Message
from streaming.intake.producer import producer
from streaming.settings import Settings


def new_id() -> str:
    return str(uuid.uuid4())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def message(settings: Settings, control: Control) -> Message:
    """For `AsyncSender.send`."""
    return Message(settings.control_topic, record_key(control), encode(control))


def send(settings: Settings, control: Control) -> None:
    """Return once every in-sync replica has it. Blocks.

    Raises:
        BrokerUnavailable
    """
    client = producer(settings, message_timeout_ms=int(DELIVERY_S * 1000))
    faults: list[str] = []

    def delivered(error: object, _: object) -> None:
        if error is not None:
            faults.append(str(error))

    try:
        client.produce(settings.control_topic, encode(control), record_key(control), on_delivery=delivered)
        left = client.flush(2 * DELIVERY_S)
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka refuses the control: {error.args[0].str()}") from None
    if faults or left:
        raise BrokerUnavailable(
            f"Kafka at {settings.kafka} did not take the control within {DELIVERY_S:g} s: "
            f"{faults[0] if faults else 'no answer'}"
        )
