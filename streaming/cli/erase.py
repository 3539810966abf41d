"""`limner erase ID`"""

from __future__ import annotations

import asyncio
import getpass
import time

import click
import msgspec

from streaming import logs
from streaming import settings as settings_
from streaming.access import audit
from streaming.access.callers import Caller
from streaming.cli.common import run, valid_id
from streaming.controls import send
from streaming.controls.receipts import Receipt
from streaming.controls.store import ControlStore
from streaming.controls.types import Erase
from streaming.controls.verify import verify as look_again
from streaming.errors import LimnerError
from streaming.profiles.keys import erased_name
from streaming.settings import Settings


@click.command()
@click.argument("customer_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--by", default="", help="Who asks for it; stands in the receipt.")
@click.option("--wait", "wait_s", default=60.0, show_default=True, help="Seconds to wait for the receipt.")
@click.option("--verify", is_flag=True, help="Erase nothing: search everywhere for ID, and check the receipt.")
def erase(customer_id: str, yes: bool, by: str, wait_s: float, verify: bool) -> None:
    """Forget everything of customer ID up to now, and print the receipt.

    Exit code 1 when the receipt does not come in time, or when --verify finds something.
    """
    settings = settings_.load()
    customer_id = valid_id(customer_id)
    if verify:
        _verify(settings, customer_id)
        return
    if not yes:
        click.confirm(f"Forget everything of customer {customer_id!r}? It can't be undone", abort=True, err=True)
    control = Erase(event_id=send.new_id(), ts=send.now_ms(), customer_id=customer_id, by=by)
    logs.configure(settings)
    audit.record(settings, Caller(f"cli:{getpass.getuser()}", frozenset()), "erase", [customer_id])
    send.send(settings, control)
    receipt = run(settings, lambda store: _wait(store, control, wait_s))
    click.echo(_pretty(receipt))


async def _wait(store: ControlStore, control: Erase, wait_s: float) -> Receipt:
    end = time.monotonic() + wait_s
    while True:
        for raw in await store.receipts(erased_name(control.customer_id)):
            receipt = msgspec.json.decode(raw, type=Receipt)
            if receipt.erased_at >= control.ts:
                return receipt
        if time.monotonic() > end:
            raise LimnerError(
                f"the erasure is ordered, but no worker has carried it out within {wait_s:g} s: see that one runs, "
                "then `limner erase ID --verify`"
            )
        await asyncio.sleep(0.1)


def _verify(settings: Settings, customer_id: str) -> None:
    found = run(settings, lambda store: look_again(settings, store, customer_id))
    if found.receipt is not None:
        click.echo(_pretty(found.receipt))
    for topic, count in found.sources.items():
        if count:
            click.echo(f"{topic}: {count} records of the producer's, until the topic's retention ends", err=True)
    if found.traces:
        places = ", ".join(f"{place} {count}" for place, count in found.traces.items())
        again = "erase again" if found.receipt else "the customer was never erased"
        raise LimnerError(f"still there: {places} ({again})")
    if found.receipt is None:
        raise LimnerError("nothing is there, and no erasure left a receipt: the customer was never known, or misspelt")
    click.echo("nothing of up to the erasure is there; the receipt's signature fits", err=True)


def _pretty(receipt: Receipt) -> str:
    return msgspec.json.format(msgspec.json.encode(receipt)).decode()
