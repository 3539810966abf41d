"""Where each label of a profile comes from: evidence by source, with its events and model. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from streaming.profiles.schema import unfold
from streaming.profiles.view import Freshness, Profile


class Contribution(msgspec.Struct, frozen=True):
    """Evidence of one source for one label."""

    source: str
    weight: float
    """Of all its evidence, as of `last_seen`."""
    weight_now: float
    """The same, halved with every half-life since."""
    evidence: int
    """Pieces of evidence ever seen."""
    last_seen: int
    """Event time of the newest, epoch ms."""
    model: str
    """Model version that gave the newest."""
    event_ids: list[str]
    """The newest events behind it, newest first, at most 3; the topics hold the rest."""


class ExplainedLabel(msgspec.Struct, frozen=True):
    """strength = 1 - e^-(sum of weight_now)"""

    facet: str
    label: str
    strength: float
    freshness: Freshness
    half_life_ms: int
    sources: list[Contribution]
    """The one that weighs most now first."""


class Explanation(msgspec.Struct, frozen=True):
    """Where each label of a profile comes from."""

    customer_id: str
    at_ms: int
    """The moment of all strengths and weights, epoch ms."""
    labels: list[ExplainedLabel]
    """In the order of the profile."""
    merged: dict[str, int]
    """The highest Kafka offset merged, by "topic/partition/epoch": what the profile knows of."""


def explain(stored: bytes, now_ms: int) -> Explanation:
    """A stored profile's labels as of `now_ms`, with all that they are computed from.

    Raises:
        ProfileUnreadable: as `Profile.from_bytes`.
    """
    profile = Profile.from_bytes(stored, now_ms)
    content = unfold(stored)
    labels = []
    for it in profile.labels:
        facets = {
            name: source["l"][it.facet] for name, source in content["s"].items() if it.facet in source.get("l", ())
        }
        known = {name: (half_life, found[it.label]) for name, (half_life, found) in facets.items() if it.label in found}
        sources = [_contribution(name, sum_, half_life, now_ms) for name, (half_life, sum_) in known.items()]
        sources.sort(key=lambda source: (-source.weight_now, source.source))
        half_life_ms = int(max(half_life for half_life, _ in known.values()))
        labels.append(ExplainedLabel(it.facet, it.label, it.strength, it.freshness, half_life_ms, sources))
    return Explanation(profile.customer_id, now_ms, labels, content.get("f", {}))


def _contribution(source: str, sum_: list[Any], half_life_ms: float, now_ms: int) -> Contribution:
    weight, last_seen, evidence, model, event_ids = sum_
    age_ms = max(0, now_ms - last_seen)  # as `view` reads it: never more than at its own time
    weight_now = weight * 2.0 ** (-age_ms / half_life_ms)
    return Contribution(source, weight, weight_now, evidence, last_seen, model, event_ids[::-1])
