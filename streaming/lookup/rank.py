"""Candidates put in order by what a profile shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest

from streaming.lookup.shapes import Candidate, Ranked, Ranking, RankRequest, Reason
from streaming.profiles.view import Profile

# As many reasons as a person reads, and a caller shows beside an offer.
REASONS = 5


def rank(profile: Profile, request: RankRequest) -> Ranking:
    """score = sum of weight * strength over a candidate's labels; a label that the profile lacks has strength 0."""
    strengths = {f"{label.facet}/{label.label}": label.strength for label in profile.labels}
    scored = [_scored(candidate, strengths) for candidate in request.candidates]
    scored.sort(key=lambda it: -it.score)  # stable: of one score, as given
    return Ranking(request.customer_id, scored[: request.limit])


def _scored(candidate: Candidate, strengths: Mapping[str, float]) -> Ranked:
    reasons = [
        Reason(label, weight, strength, weight * strength)
        for label, weight in candidate.labels.items()
        if weight and (strength := strengths.get(label, 0.0))
    ]
    return Ranked(
        candidate.id,
        sum((reason.contribution for reason in reasons), 0.0),
        nlargest(REASONS, reasons, key=lambda reason: abs(reason.contribution)),
    )
