"""Encoded profiles of this second: many look-ups of one customer, as while someone browses, are rendered once."""

from __future__ import annotations

from typing import NamedTuple

from streaming.events.wire import Codec
from streaming.lookup.shapes import SelectedProfile
from streaming.profiles.view import Profile

# Of one second, at some 5 KB each: 20 MB. A process answers about as many different look-ups in it.
MAX_KEPT = 4_096

Key = tuple[str, Codec, str | None]  # customer_id, how it is encoded, the `fields` asked for


class Rendering(NamedTuple):
    """Strengths in it are at most a second old, which changes the sixth digit of one whose half-life is a day."""

    stored: bytes
    body: bytes
    sensitive: Profile | SelectedProfile | None
    """What was rendered, where the audit must hear of it; thousands of profiles kept would cost the collector more
    than rendering them again."""


class Renderings:
    """A rendering stands for what was stored when it was made, and is asked for with what is stored now."""

    def __init__(self) -> None:
        self._second = 0
        self._kept: dict[Key, Rendering] = {}

    def get(self, key: Key, stored: bytes | None, now_ms: int) -> Rendering | None:
        found = self._of(now_ms).get(key)
        return found if found is not None and found.stored == stored else None

    def keep(self, key: Key, rendering: Rendering, now_ms: int) -> None:
        kept = self._of(now_ms)
        if len(kept) < MAX_KEPT:
            kept[key] = rendering

    def _of(self, now_ms: int) -> dict[Key, Rendering]:
        second = now_ms // 1_000
        if second != self._second:
            self._second, self._kept = second, {}
        return self._kept
