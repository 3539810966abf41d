"""What comes in: a Kafka record's bytes become events, or dead letters that say why not. Start at `decode`."""

from streaming.events.decode import decode
from streaming.events.types import (
    MONEY,
    REASONS,
    Chat,
    DeadLetter,
    Event,
    Limits,
    Line,
    Order,
    Position,
    Record,
    Source,
)

__all__ = [
    "MONEY",
    "REASONS",
    "Chat",
    "DeadLetter",
    "Event",
    "Limits",
    "Line",
    "Order",
    "Position",
    "Record",
    "Source",
    "decode",
]
