"""`limner worker`: consume events and keep profiles current, until SIGTERM."""

from __future__ import annotations

import click

from streaming import logs
from streaming import settings as settings_module


@click.command()
def worker() -> None:
    """Consume events and keep profiles current. Start as many as there are partitions; they share the work."""
    import prometheus_client

    from model import Engine
    from streaming import metrics
    from streaming.agents.run import run

    settings = settings_module.load()
    logs.configure(settings)
    engine = Engine.load(
        settings.model,
        device=settings.device,
        packs=settings.packs,
        cache_dir=settings.cache_dir,
        cache_mb=settings.cache_mb,
        threads=settings.torch_threads,
    )
    prometheus_client.REGISTRY.register(metrics.TextCache(engine.stats))
    metrics.MODEL_INFO.labels(engine.version, engine.device).set(1)
    run(settings, engine)
