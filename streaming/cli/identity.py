"""`limner identity`"""

from __future__ import annotations

import click

from streaming import settings as settings_
from streaming.cli.common import order, run, valid_id, valid_person
from streaming.controls.send import new_id, now_ms
from streaming.controls.types import Block, Merge, Unblock, Unmerge
from streaming.profiles import fold

_BY = click.option("--by", default="", help="Who asks for it, for the record.")


@click.group()
def identity() -> None:
    """Ids of one person: link them, undo it, say that an id is shared."""


@identity.command()
@click.argument("customer_id", metavar="ID")
@click.argument("other", metavar="OTHER")
@_BY
def link(customer_id: str, other: str, by: str) -> None:
    """ID and OTHER are one person: look-ups of either show both."""
    first, second = _two(customer_id, other)
    order(settings_.load(), Merge(event_id=new_id(), ts=now_ms(), customer_id=first, other=second, by=by))


@identity.command()
@click.argument("customer_id", metavar="ID")
@click.argument("other", metavar="OTHER")
@_BY
def unlink(customer_id: str, other: str, by: str) -> None:
    """They are not: both are as if they had never been linked."""
    first, second = _two(customer_id, other)
    order(settings_.load(), Unmerge(event_id=new_id(), ts=now_ms(), customer_id=first, other=second, by=by))


@identity.command()
@click.argument("customer_id", metavar="ID")
@_BY
def block(customer_id: str, by: str) -> None:
    """Several people share ID (a tablet in a shop): its links don't count."""
    shared = Block(event_id=new_id(), ts=now_ms(), customer_id=valid_person(customer_id), by=by)
    order(settings_.load(), shared)


@identity.command()
@click.argument("customer_id", metavar="ID")
@_BY
def unblock(customer_id: str, by: str) -> None:
    """They are one person again: its links count."""
    order(settings_.load(), Unblock(event_id=new_id(), ts=now_ms(), customer_id=valid_person(customer_id), by=by))


@identity.command()
@click.argument("customer_id", metavar="ID")
def show(customer_id: str) -> None:
    """The ids that ID is linked with now, directly, one a line."""
    raw = run(settings_.load(), lambda store: store.profile(valid_id(customer_id)))
    for other in fold.neighbours(raw) if raw else []:
        click.echo(other)
    if raw and fold.is_shared(raw):
        click.echo("blocked: several people share this id", err=True)


def _two(customer_id: str, other: str) -> tuple[str, str]:
    if customer_id == other:
        raise click.UsageError("ID and OTHER are the same")
    return valid_person(customer_id), valid_person(other)
