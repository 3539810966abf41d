"""`limner consent ID`"""

from __future__ import annotations

import click

from streaming import settings as settings_
from streaming.cli.common import order, run, valid_id, valid_person
from streaming.controls.send import new_id, now_ms
from streaming.controls.types import PURPOSES, Consent, Purpose
from streaming.profiles.view import Profile

_PURPOSE = click.Choice(PURPOSES)


@click.command()
@click.argument("customer_id", metavar="ID")
@click.option("--grant", multiple=True, type=_PURPOSE, help="A purpose that the customer agrees to.")
@click.option("--deny", multiple=True, type=_PURPOSE, help="One that the customer refuses.")
@click.option("--by", default="", help="Who asks for it, for the record.")
def consent(customer_id: str, grant: tuple[Purpose, ...], deny: tuple[Purpose, ...], by: str) -> None:
    """Show what ID grants and denies, by purpose, or change it."""
    settings = settings_.load()
    if both := sorted(set(grant) & set(deny)):
        raise click.UsageError(f"both granted and denied: {', '.join(both)}")
    if grant or deny:
        purposes = dict.fromkeys(grant, True) | dict.fromkeys(deny, False)
        said = Consent(event_id=new_id(), ts=now_ms(), customer_id=valid_person(customer_id), purposes=purposes, by=by)
        order(settings, said)
        return
    raw = run(settings, lambda store: store.profile(valid_id(customer_id)))
    told = Profile.from_bytes(raw, now_ms()).consent if raw else {}
    for purpose in PURPOSES:
        granted = told.get(purpose, settings.consent[purpose])
        note = "" if purpose in told else "  (default: said nothing)"
        click.echo(f"{purpose:<16} {'granted' if granted else 'denied'}{note}")
