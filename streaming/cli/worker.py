"""`limner worker`: consume events and keep profiles current, until SIGTERM."""

from __future__ import annotations

import click

from streaming import logs
from streaming import settings as settings_module


@click.command()
def worker() -> None:
    """Consume events and keep profiles current. Start as many as there are partitions; they share the work."""
    import prometheus_client

    from streaming import engines, metrics
    from streaming.agents.run import run

    settings = settings_module.load()
    logs.configure(settings)
    with engines.pool(settings) as pool:
        prometheus_client.REGISTRY.register(metrics.Engines(pool.stats))
        metrics.MODEL_INFO.labels(pool.version, pool.device).set(1)
        run(settings, pool)
