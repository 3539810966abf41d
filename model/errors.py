"""The model's exception tree. Every message says what is wrong, where, and what mends it."""

from __future__ import annotations


class ModelError(Exception):
    """Something a person can mend about a model, a pack or their files."""


class ModelUnavailable(ModelError):
    """The encoder's files can't be had: no network, no package, no such folder or hub id."""


class ModelCorrupt(ModelError):
    """A model's file is not what it should be: cut short, altered, or of another format."""


class PackError(ModelError):
    """A taxonomy, or the calibration beside it, breaks its rules; the message names file, facet and label."""
