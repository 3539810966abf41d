"""`limner topics`"""

from __future__ import annotations

import sys

import click

from streaming import kafka_admin, settings


@click.command()
@click.option("--check", is_flag=True, help="Only verify; exit 1 when a topic is missing.")
def topics(check: bool) -> None:
    """Create the missing Kafka topics and verify the others.

    Existing topics are never changed: what differs from the settings is printed.
    """
    states = kafka_admin.ensure_topics(settings.load(), create=not check)
    width = max(len(state.topic) for state in states)
    for state in states:
        verdict = state.fault or ("created" if state.created else "ok")
        click.echo(f"{state.topic:<{width}}  partitions {state.partitions:<3} epoch {state.epoch or '-':<8}  {verdict}")
    if any(state.missing for state in states):
        sys.exit(1)
