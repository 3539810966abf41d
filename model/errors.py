"""The model's exception tree. Every message says what is wrong, where, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ModelError(Exception):
    """Something a person can mend about a model, a pack or their files."""


class ModelUnavailable(ModelError):
    """The encoder's files can't be had: no network, no package, no such folder or hub id."""


class ModelCorrupt(ModelError):
    """A model's file is not what it should be: cut short, altered, or of another format."""


class PackError(ModelError):
    """A taxonomy, or the calibration beside it, breaks its rules; the message names file, facet and label."""


class EngineFailed(ModelError):
    """Engine processes can't be had: they don't start, or fail on every text. What waited can be asked again."""


class TextRefused(ModelError):
    """Texts that no engine process gives an answer for: each, alone, raised, ended or held up two of them.

    `refused` are their places among the texts asked for, `answers` the answers to all, None at these places.
    """

    def __init__(self, refused: Sequence[int], answers: Sequence[Any]) -> None:
        super().__init__(f"{len(refused)} of {len(answers)} texts end or hold up the engine: leave them out")
        self.refused = refused
        self.answers = answers
