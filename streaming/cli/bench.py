"""`limner bench NAME`: measure on this machine, beside a baseline in the same run."""

from __future__ import annotations

import importlib
import json

import click

BENCHES = {
    "stream": "order and chat events/s of one worker beside a raw consumer loop; freshness at 70 % load",
    "merge": "merges/s beside plain SETs of the same size; growth over customers and history",
}


@click.command()
@click.argument("name", type=click.Choice(list(BENCHES)))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bench(name: str, as_json: bool) -> None:
    """Measure NAME with servers of its own. Takes minutes; leave the machine alone meanwhile."""
    from streaming.bench import machine

    figures = importlib.import_module(f"streaming.bench.{name}").run()
    figures["machine"] = machine.describe()
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{name}: {BENCHES[name]}")
    for key, value in figures.items():
        click.echo(f"  {key:28} {json.dumps(value) if isinstance(value, dict) else value}")
