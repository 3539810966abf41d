"""An engine for real processes of a pool, exact and without torch, that does to its process what a text says."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelCorrupt
from model.taxonomy import Source
from tests.fakes import HashScorer

LOAD = "tests.engine_fakes:load"


class FakeEngine(HashScorer):
    labels: ClassVar = {
        "interests": [f"i{i}" for i in range(6)],
        "needs": [f"n{i}" for i in range(4)],
        "sentiment": ["positive", "neutral", "negative"],
    }

    def __init__(
        self, version: str = "fake-1", device: str = "cpu", broken: bool = False, marker: str = "/nowhere",
        text_s: float = 0.0, window_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.version = version
        self.device = device
        self._broken = broken
        self._marker = Path(marker)
        self._text_s = text_s
        self._window_s = window_s

    def evidence(self, texts: list[str], source: Source) -> list[tuple[tuple[int, float], ...]]:
        time.sleep(self._window_s + self._text_s * len(texts))
        for text in texts:
            self._obey(text)
        return super().evidence(texts, source)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._broken and list(texts) != [""]:
            raise RuntimeError("nothing works")
        return np.array([[len(text), 1, 2] for text in texts], np.float32)

    def score(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {
            facet: np.array([[len(text) + n for n in range(len(labels))] for text in texts], np.float32)
            for facet, labels in self.labels.items()
        }

    def _obey(self, text: str) -> None:
        if self._broken or text == "raise":
            raise RuntimeError(f"I can't read {text!r}")
        if text == "die once" and not self._marker.exists():
            self._marker.touch()
            os._exit(3)
        if text == "die":
            os._exit(3)
        if text == "hang":
            time.sleep(1000)
        if text == "eat":
            resource.setrlimit(resource.RLIMIT_AS, (2**31, -1))
            bytearray(2**32)


def load(arguments: dict[str, Any]) -> FakeEngine:
    if words := arguments.get("fail"):
        raise ModelCorrupt(words)
    if arguments.get("die"):
        os._exit(4)
    return FakeEngine(**arguments)
