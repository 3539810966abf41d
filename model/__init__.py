"""Text in, calibrated label probabilities out. Knows neither Kafka nor Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.engine import Engine, Evidence, LabelRef

__all__ = ["Engine", "Evidence", "LabelRef"]


def __getattr__(name: str) -> Any:
    """`from model import Engine` imports torch; `import model.taxonomy` or `model.errors` must not."""
    if name in __all__:
        import model.engine

        return getattr(model.engine, name)
    raise AttributeError(f"module 'model' has no attribute {name!r}")
