"""`limner profile ID`"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

import click
import msgspec

from streaming import settings as settings_
from streaming.client import InvalidArgument, LabelStrength, LimnerError, Orders, Profile, ProfileClient
from streaming.client.calls import now_ms

BAR_CELLS = 20  # a strength to the nearest twentieth, which is as much as an eye compares
NAME_CELLS = 28  # longer labels are cut: the columns must line up
_COLOURS = {"FRESH": "green", "STALE": "yellow", "EXPIRED": "bright_black"}
_AGES = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


@click.command()
@click.argument("customer_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /v1/profiles/ID answers.")
@click.option("--explain", is_flag=True, help="Also show which events and which model each label comes from.")
@click.option("--export", is_flag=True, help="Print all that limner holds of the customer, Kafka searched, as JSON.")
def profile(customer_id: str, as_json: bool, explain: bool, export: bool) -> None:
    """Show one customer's profile, as of now.

    Exit code 1 when there is none.
    """
    settings = settings_.load()
    if export:
        from streaming.cli.common import run, valid_id
        from streaming.controls.export import export as everything

        known = run(settings, lambda store: everything(settings, store, valid_id(customer_id), now_ms()))
        click.echo(msgspec.json.format(msgspec.json.encode(known)).decode())
        return
    with ProfileClient(settings.redis, namespace=settings.namespace, timeout_s=settings.store_timeout_s) as profiles:
        try:
            found = profiles.get(customer_id)
        except InvalidArgument as error:
            raise click.BadParameter(error.detail, param_hint="ID") from None
    if found is None:
        raise LimnerError(f"no event of customer {customer_id!r} has been merged")
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for line in render(found, now_ms(), shutil.get_terminal_size().columns, explain=explain):
        click.echo(line)


def render(found: Profile, at_ms: int, width: int, *, explain: bool) -> Iterator[str]:
    """The profile in lines, with ANSI styles (click drops them when stdout is no terminal)."""
    yield click.style(printable(found.customer_id), bold=True) + f"  updated {_when(found.updated_ms, at_ms)}"
    yield "events     " + ", ".join(f"{printable(source)} {count}" for source, count in found.events.items())
    if found.sentiment is not None:
        yield f"sentiment  {found.sentiment:+.2f}  (-1 negative, +1 positive)"
    name_cells = min(NAME_CELLS, max((cells(printable(label.label)) for label in found.labels), default=0))
    for facet, labels in groupby(found.labels, key=lambda label: label.facet):
        yield ""
        yield click.style(printable(facet), bold=True)
        for label in labels:
            yield from _label(label, at_ms, name_cells, explain=explain)
    if found.orders is not None:
        yield ""
        yield from _orders(found.orders, at_ms, width)


def _label(label: LabelStrength, at_ms: int, name_cells: int, *, explain: bool) -> Iterator[str]:
    filled = round(label.strength * BAR_CELLS)
    bar = "█" * filled + "░" * (BAR_CELLS - filled)
    yield (
        f"  {fit(label.label, name_cells)} {click.style(bar, fg=_COLOURS[label.freshness])} {label.strength:.2f}  "
        f"{label.freshness:<7}  evidence {label.evidence:<5} last seen {_when(label.last_seen, at_ms)}, "
        f"from {', '.join(map(printable, label.sources))}"
    )
    if explain:
        events = ", ".join(map(printable, label.event_ids)) or "not kept"
        yield f"  {' ' * name_cells} model {printable(label.model)}, newest events: {events}"


def _orders(orders: Orders, at_ms: int, width: int) -> Iterator[str]:
    yield (
        click.style("orders", bold=True)
        + f"  {orders.placed} placed, {orders.cancelled} cancelled, {orders.returned} returned"
    )
    if orders.first_ts is not None and orders.last_ts is not None:
        yield f"  first {_when(orders.first_ts, at_ms)}, last {_when(orders.last_ts, at_ms)}"
    for currency, money in orders.money.items():
        yield (
            f"  {currency} {money.spent:,.2f} spent, {money.cancelled:,.2f} cancelled, {money.returned:,.2f} returned"
        )
    if orders.basket_items is not None:
        value = f", worth {orders.basket_value:,.2f}" if orders.basket_value is not None else ""
        yield f"  an order holds {orders.basket_items:,.1f} items on average{value}"
    if not orders.top_products:
        return
    yield ""
    yield click.style("top products", bold=True)
    sku_cells = min(NAME_CELLS, max(cells(printable(product.sku)) for product in orders.top_products))
    for product in orders.top_products:
        counts = f"  {product.orders} orders, {product.quantity:,.10g} items, last {_when(product.last_ts, at_ms)}"
        room = max(10, width - 4 - sku_cells - cells(counts))
        yield f"  {fit(product.sku, sku_cells)}  {fit(product.description, min(40, room))}{counts}"


def _when(ts: int, at_ms: int) -> str:
    """Local date, and how long ago, in the largest unit that fits."""
    date = datetime.fromtimestamp(ts / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
    age = at_ms - ts
    unit, size = next(((unit, size) for unit, size in _AGES if age >= size), ("s", 1_000))
    return f"{date} ({max(0, age) // size} {unit} ago)"


def printable(text: str) -> str:
    """Without control characters: a text of a customer's must not steer the terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)


def cells(text: str) -> int:
    """Columns of a terminal that a text takes: two for a Chinese character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def fit(text: str, width: int) -> str:
    """Printable, and cut or padded to exactly `width` cells."""
    text = printable(text)
    if cells(text) > width:
        while cells(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - cells(text))
