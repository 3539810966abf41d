"""`limner serve`"""

from __future__ import annotations

import click

from streaming import logs
from streaming import settings as settings_


@click.command()
@click.option("--host", help="Address to listen on.  [setting: http_host]")
@click.option("--port", type=int, help="Port; 0 takes a free one.  [setting: http_port]")
def serve(host: str | None, port: int | None) -> None:
    """Run the HTTP service: look-ups, audiences, intake of events; OpenAPI at /openapi.json."""
    given = {"http_host": host, "http_port": port}
    settings = settings_.load(**{name: value for name, value in given.items() if value is not None})
    from streaming.lookup.server import serve as run  # not before the settings are known to be right

    logs.configure(settings)
    run(settings)
