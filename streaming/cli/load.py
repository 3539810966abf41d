"""`limner load`"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from streaming import settings as limner_settings
from streaming.intake import load as intake
from streaming.intake.mapping import PRESETS, Options
from streaming.intake.rows import Refused

# Off a terminal: often enough to see that it lives, rare enough for a log.
LINE_EVERY_S = 5.0
# On a terminal.
REDRAW_EVERY_S = 0.2


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if wrong := [value for value, (name, sign, _) in zip(values, pairs, strict=True) if not (name and sign)]:
        raise click.BadParameter(f"{wrong[0]!r} has no `=`")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _zone(ctx: click.Context, param: click.Parameter, value: str) -> ZoneInfo:
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise click.BadParameter(f"no time zone {value!r}: use a name such as Europe/London") from None


def _encoding(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        "".encode(value)
    except LookupError:
        raise click.BadParameter(f"no encoding {value!r}: use a name such as utf-8 or latin-1") from None
    return value


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--kind", type=click.Choice(["chat", "order"]), help="What the rows of a table are.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Columns of a published data set.")
@click.option("--map", "columns", multiple=True, metavar="FIELD=COLUMN", callback=_pairs,
              help="The column that holds a field; repeatable.")  # fmt: skip
@click.option("--set", "constants", multiple=True, metavar="FIELD=VALUE", callback=_pairs,
              help="A value for all rows, such as currency=EUR; repeatable.")  # fmt: skip
@click.option("--timezone", "zone", default="UTC", show_default=True, callback=_zone,
              help="Of times that carry no offset.")  # fmt: skip
@click.option("--encoding", default="utf-8-sig", show_default=True, callback=_encoding, help="Of CSV.")
@click.option("--refused", "refused_file", type=click.Path(dir_okay=False, writable=True),
              help="Write each refused line's number and reason to this CSV file.")  # fmt: skip
def load(
    files: tuple[str, ...],
    kind: Any,
    preset: str | None,
    columns: dict[str, str],
    constants: dict[str, str],
    zone: ZoneInfo,
    encoding: str,
    refused_file: str | None,
) -> None:
    """Send FILES of events to Kafka: CSV, JSON lines or Parquet, gzip or not; `-` is standard input.

    The content tells the format. JSON lines are taken as limner events unless --map, --set or
    --preset say that they are rows. A column that is called like a field needs no --map.

    \b
    Fields of a chat:   customer_id ts text [event_id lang channel role]
    Fields of an order: customer_id ts order_id currency sku quantity unit_price
                        [description category status]
    Rows of an order are its lines; those with the same order id become one event.
    """
    options = Options(
        kind=kind,
        preset=PRESETS[preset] if preset else None,
        columns=columns,
        constants=constants,
        zone=zone,
        encoding=encoding,
    )
    summary = intake.Summary()
    settings = limner_settings.load()
    started = time.monotonic()
    try:
        with _refused_to(refused_file) as on_refused, _progress(files, summary) as on_progress:
            intake.load(settings, files, options, summary, on_refused=on_refused, on_progress=on_progress)
    except BaseException:  # also after Ctrl-C: what was done is done
        if summary.lines:
            _print(files, summary, time.monotonic() - started)
        raise
    _print(files, summary, time.monotonic() - started)


@contextmanager
def _refused_to(path: str | None) -> Iterator[Callable[[str, int, Refused], None]]:
    if path is None:
        yield lambda name, number, refused: None
        return
    try:
        file = Path(path).open("w", newline="", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--refused") from None
    with file:
        writer = csv.writer(file)
        writer.writerow(["file", "line", "reason", "detail"])
        yield lambda name, number, refused: writer.writerow([name, number, refused.reason, refused.detail])


@contextmanager
def _progress(files: tuple[str, ...], summary: intake.Summary) -> Iterator[Callable[[int, float], None]]:
    console = Console(stderr=True)
    every = REDRAW_EVERY_S if console.is_terminal else LINE_EVERY_S
    due = time.monotonic() + every

    def counts() -> str:
        return f"{summary.lines:,} lines, {summary.events.total():,} events, {summary.refused.total():,} refused"

    with ExitStack() as stack:
        if console.is_terminal:
            bar = stack.enter_context(
                Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                         TextColumn("{task.fields[counts]}"), console=console, transient=True)
            )  # fmt: skip
            task = bar.add_task(files[0], total=len(files), counts="")

        def on_progress(index: int, share: float) -> None:
            nonlocal due
            if time.monotonic() < due:
                return
            due = time.monotonic() + every
            if console.is_terminal:
                bar.update(task, completed=index + share, description=Path(files[index]).name, counts=counts())
            else:
                click.echo(f"{(index + share) / len(files):4.0%}  {files[index]}  {counts()}", err=True)

        yield on_progress


def _print(files: tuple[str, ...], summary: intake.Summary, seconds: float) -> None:
    sent = ", ".join(f"{count:,} {kind}s" for kind, count in sorted(summary.events.items())) or "none"
    click.echo(
        f"lines read     {summary.lines:,} in {seconds:.1f} s ({summary.lines / max(seconds, 1e-9):,.0f} a second)"
    )
    click.echo(f"events sent    {sent} ({summary.acknowledged:,} acknowledged by Kafka)")
    click.echo(f"lines refused  {summary.refused.total():,}")
    for reason, count in summary.refused.most_common():
        click.echo(f"  {count:>9,}  {reason}: {_list(summary.examples[reason], count, files)}")
    if summary.held:
        click.echo(f"lines held     {summary.held:,} of orders that may have been incomplete: not sent")
    if summary.late_count:
        click.echo(
            f"orders in parts  {summary.late_count:,}, each part counts as an order: "
            f"sort the file by order id. {_list(summary.late, summary.late_count, files)}"
        )


def _list(examples: list[tuple[str, int]], count: int, files: tuple[str, ...]) -> str:
    places = [str(line) if len(files) == 1 else f"{Path(name).name}:{line}" for name, line in examples]
    return "line " + ", ".join(places) + (", …" if count > len(places) else "")
