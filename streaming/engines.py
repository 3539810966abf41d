"""The engine processes of a worker, from its settings."""

from __future__ import annotations

from model import autotune
from model.engine_process import Start
from model.pool import LOAD, EnginePool, PoolOptions
from streaming.settings import Settings


def start_of(settings: Settings) -> Start:
    """How each engine process loads its model."""
    arguments = {
        "name": settings.model,
        "device": settings.device,
        "packs": settings.packs,
        "cache_dir": str(settings.cache_dir),
        "long_texts": settings.long_texts,
        "cache_mb": 0,  # texts are remembered on this side of the processes
    }
    return Start(LOAD, arguments)


def pool(settings: Settings) -> EnginePool:
    """Start the engines, as many as are set or as this machine was measured to want.

    Raises:
        ModelError: the model can't be loaded.
    """
    start = start_of(settings)
    engines, threads, window_tokens = settings.engines, settings.torch_threads, settings.window_tokens
    if not engines:
        best = autotune.tuned(settings.model, settings.cache_dir, start)
        engines, threads = best.engines, threads or best.threads
        window_tokens = window_tokens or best.window_tokens
    options = PoolOptions(
        engines=engines,
        threads=threads or max(1, autotune.cores() // engines),
        window_tokens=window_tokens or autotune.DEFAULT_WINDOW,
        window_ms=settings.window_ms,
        cache_mb=settings.cache_mb,
        disk_mb=settings.disk_cache_mb,
        cache_dir=settings.cache_dir,
    )
    return EnginePool(start, options)
