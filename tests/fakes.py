"""Stand-ins that are exact where the real part is not: a scorer whose answers are a function of the text alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from streaming.events.types import Source

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Ref:
    facet: str
    label: str
    half_life_ms: int


class HashScorer:
    """Up to three labels a text, by its hash; `poison` in a text makes it fail, as a model might."""

    version = "hash-1"
    label_refs = [  # noqa: RUF012  a constant of a test
        *(Ref("interests", f"i{i}", 30 * DAY_MS) for i in range(6)),
        *(Ref("needs", f"n{i}", 7 * DAY_MS) for i in range(4)),
        *(Ref("sentiment", name, 14 * DAY_MS) for name in ("positive", "neutral", "negative")),
    ]

    def evidence(self, texts: list[str], source: Source) -> list[tuple[tuple[int, float], ...]]:
        if any("poison" in text for text in texts):
            raise RuntimeError("the model can't take this")
        return [self._one(text, source) for text in texts]

    def _one(self, text: str, source: Source) -> tuple[tuple[int, float], ...]:
        digest = hashlib.blake2b(f"{source} {text}".encode(), digest_size=8).digest()
        usable = 6 if source == "order" else len(self.label_refs)
        picked = {digest[i] % usable: round((digest[i + 3] + 1) / 256, 4) for i in range(digest[6] % 4)}
        return tuple(sorted(picked.items()))
