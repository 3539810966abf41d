"""Accepted events into Kafka: bounded in flight, each with its token once it is there."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from streaming.client.tokens import Token, encode
from streaming.intake.async_send import AsyncSender, Message, Place
from streaming.lookup.problems import ProblemError
from streaming.lookup.shapes import EventResult, EventsTaken

# Half of what the producer's queue holds, in bytes, and a tenth in messages: it never refuses what was let in.
MAX_BYTES = 32 << 20
MAX_EVENTS = 10_000


class Intake:
    """Events between their request and Kafka's acknowledgement."""

    def __init__(self, sender: AsyncSender) -> None:
        self._sender = sender
        self._events = 0
        self._bytes = 0

    def check_room(self) -> None:
        """
        Raises:
            ProblemError: 503, so much is in flight already that Kafka must be behind.
        """
        if self._events >= MAX_EVENTS or self._bytes >= MAX_BYTES:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                f"{self._events:,} events wait for Kafka's acknowledgement: nothing was sent, send it again later",
            )

    async def send(self, messages: Sequence[Message]) -> list[Place]:
        """Where each message stands, acknowledged by all in-sync replicas.

        Raises:
            ProblemError: 503, there is no room, nothing was sent.
            BrokerUnavailable: see `AsyncSender.send`.
        """
        self.check_room()
        size = sum(len(message.value or b"") for message in messages)
        self._events += len(messages)
        self._bytes += size
        try:
            return await self._sender.send(messages)
        finally:
            self._events -= len(messages)
            self._bytes -= size


def taken(results: Sequence[EventResult], customers: Sequence[str], places: Sequence[Place]) -> EventsTaken:
    """`results` with the tokens of those accepted, whose customers and places come in the same order."""
    accepted = [result for result in results if result.status == "accepted"]
    tokens: list[Token] = []
    for result, customer_id, place in zip(accepted, customers, places, strict=True):
        if place.offset is not None:
            token = Token(customer_id, place.topic, place.partition, place.offset)
            result.token = encode(token)
            tokens.append(token)
    # A customer's records of one topic stand in one partition, where the last one stands for all before it.
    is_one = len(tokens) == len(accepted) and len({(token.customer_id, token.topic) for token in tokens}) == 1
    last = max(tokens, key=lambda token: token.offset) if is_one else None
    return EventsTaken(len(accepted), len(results) - len(accepted), list(results), encode(last) if last else None)
