"""`limner bench NAME`: measure on this machine, beside a baseline in the same run."""

from __future__ import annotations

import importlib
import json

import click

BENCHES = {
    "stream": "order and chat events/s of one worker beside a raw consumer loop; freshness at 70 % load",
    "engine": "texts/s beside a naive loop and each peer that is installed; their agreement; windows; repeats",
    "lookup": "the SDK beside a plain GET; the HTTP service's look-ups/s and latencies on one core; Feast beside it",
    "merge": "merges/s beside plain SETs of the same size; growth over customers and history",
}


@click.command()
@click.argument("name", type=click.Choice(list(BENCHES)))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--feast", metavar="PYTHON", default="", help="lookup: interpreter of an environment with feast[redis].")
@click.option("--minutes", type=click.IntRange(0, 60), default=0, help="lookup: so long at 2,000/s: does p99 stay?")
def bench(name: str, as_json: bool, feast: str, minutes: int) -> None:
    """Measure NAME with servers of its own. Takes minutes; leave the machine alone meanwhile."""
    from streaming.bench import machine

    options = {"feast_python": feast, "minutes": minutes} if name == "lookup" else {}
    if not options and (feast or minutes):
        raise click.UsageError("--feast and --minutes are of `limner bench lookup`")
    figures = importlib.import_module(f"streaming.bench.{name}").run(**options)
    figures["machine"] = {**figures.get("machine", {}), **machine.describe()}
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{name}: {BENCHES[name]}")
    for key, value in figures.items():
        click.echo(f"  {key:28} {json.dumps(value) if isinstance(value, dict) else value}")
