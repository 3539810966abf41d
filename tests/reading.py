"""Records as the oracle takes them: one scored event each, no batch anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streaming.events import Limits, decode
from streaming.events.types import Chat, Event, Record, Source
from streaming.pipeline import Scorer
from streaming.profiles.delta import Evidence, Scored
from streaming.scrub import clean


def scored(records: Sequence[Record], source: Source, scorer: Scorer, limits: Limits, now_ms: int) -> Iterator[Scored]:
    for record in records:
        for event in decode(record, source, limits, now_ms)[0]:
            texts = read(event)
            yield Scored(record.position, event, texts, strongest(scorer.evidence(texts, source)))


def read(event: Event) -> list[str]:
    if isinstance(event, Chat):
        return [clean(event.text, 16_384)] if event.role == "customer" else []
    return [clean(line.description, 16_384) for line in event.lines] if event.status == "placed" else []


def strongest(of_texts: Sequence[Evidence]) -> Evidence:
    labels = sorted({index for evidence in of_texts for index, _ in evidence})
    return [(i, max(p for evidence in of_texts for index, p in evidence if index == i)) for i in labels]
