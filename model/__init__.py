"""Text in, calibrated label probabilities out. Knows neither Kafka nor Redis."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# A thread that waits for the others of a forward pass sleeps instead of spinning. Spinning gains little where every
# thread has a core to itself and is ruinous where it hasn't: beside a broker and a store on two cores, 11 texts/s
# became 100. Read once, when torch loads its OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from model.cache import Evidence
    from model.engine import Engine, LabelRef

__all__ = ["Engine", "Evidence", "LabelRef"]


def __getattr__(name: str) -> Any:
    """`from model import Engine` imports torch; `import model.taxonomy` or `model.errors` must not."""
    if name in __all__:
        import model.engine

        return getattr(model.engine, name)
    raise AttributeError(f"module 'model' has no attribute {name!r}")
