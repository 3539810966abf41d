"""`limner keys`: who may call the HTTP service, and for what."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from streaming import settings as settings_
from streaming.access import keys as access
from streaming.access.callers import SCOPES, Scope
from streaming.errors import LimnerError, SettingsError

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class _Duration(click.ParamType):
    name = "90d|12h|2w"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d{1,4})([hdw])", value)
        if not found:
            self.fail("must be a number and h, d or w, such as 90d", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


@click.group()
@click.option("--file", "path", type=click.Path(path_type=Path), help="The keys file.  [setting: keys_file]")
@click.pass_context
def keys(ctx: click.Context, path: Path | None) -> None:
    """Make, list, revoke and rotate API keys. Services take a change over within about a second."""
    settings = settings_.load()
    path = path or settings.keys_file
    if path is None:
        raise SettingsError("which keys file? set LIMNER_KEYS_FILE, or give --file")
    ctx.obj = (path, settings)


@keys.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(sorted(SCOPES)), help="Repeatable.")
@click.option("--namespace", help="Whose profiles it is for.  [setting: namespace]")
@click.option("--expires", type=_Duration(), help="From now.  [default: never]")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second.  [setting: rate_limit]")
@click.pass_obj
def add(
    context: tuple[Path, settings_.Settings],
    name: str,
    scopes: tuple[Scope, ...],
    namespace: str | None,
    expires: timedelta | None,
    rate: float | None,
) -> None:
    """Make a key for NAME (who uses it) and print it: this once, limner keeps only its hash."""
    path, settings = context
    _make(
        path,
        name=name,
        scopes=list(dict.fromkeys(scopes)),
        namespace=namespace or settings.namespace,
        expires=_now() + expires if expires else None,
        rate=rate,
    )


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.pass_obj
def list_(context: tuple[Path, settings_.Settings], as_json: bool) -> None:
    """List keys: id, state, scopes, namespace, rate, name."""
    entries = access.read(context[0])
    if as_json:
        shown = ({**msgspec.to_builtins(key), "state": _state(key)} for key in entries)
        click.echo(json.dumps([{name: value for name, value in key.items() if name != "hash"} for key in shown]))
        return
    for key in entries:
        rate = f"{key.rate:g}/s" if key.rate else "-"
        click.echo(f"{key.id}  {_state(key):31}  {','.join(key.scopes):22}  {key.namespace:8}  {rate:7}  {key.name}")


@keys.command()
@click.argument("key_id")
@click.pass_obj
def revoke(context: tuple[Path, settings_.Settings], key_id: str) -> None:
    """Take a key out of force."""
    with access.changing(context[0]) as entries:
        at = _position(entries, key_id)
        if entries[at].revoked is None:
            entries[at] = msgspec.structs.replace(entries[at], revoked=_now())
    click.echo(f"limner: key {key_id} ({entries[at].name}) is revoked", err=True)


@keys.command()
@click.argument("key_id")
@click.option("--overlap", type=_Duration(), default="24h", show_default=True, help="The old key works for so long.")
@click.pass_obj
def rotate(context: tuple[Path, settings_.Settings], key_id: str, overlap: timedelta) -> None:
    """Print a new key with the old one's name and rights; the old one expires after the overlap.

    A key that was to expire lives as long again as it was to.
    """
    path = context[0]
    with access.changing(path) as entries:
        at = _position(entries, key_id)
        old = entries[at]
        if fault := old.fault(_now()):
            raise LimnerError(f"key {key_id} was {fault}: make a new one with `limner keys add`")
        key, new = access.generate(
            {entry.id for entry in entries},
            name=old.name,
            scopes=old.scopes,
            namespace=old.namespace,
            rate=old.rate,
            expires=_now() + (old.expires - old.created) if old.expires else None,
        )
        ends = _now() + overlap
        entries[at] = msgspec.structs.replace(old, expires=min(ends, old.expires or ends))
        entries.append(new)
    _show(key, new)


def _make(path: Path, **fields: object) -> None:
    with access.changing(path) as entries:
        key, entry = access.generate({entry.id for entry in entries}, **fields)
        entries.append(entry)
    _show(key, entry)


def _show(key: str, entry: access.Key) -> None:
    click.echo(f"limner: key {entry.id} for {entry.name}; it is not shown again:", err=True)
    click.echo(key)


def _position(entries: list[access.Key], key_id: str) -> int:
    for at, entry in enumerate(entries):
        if entry.id == key_id:
            return at
    raise LimnerError(f"no key has the id {key_id}: `limner keys list` shows them")


def _state(key: access.Key) -> str:
    return key.fault(_now()) or (f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "in force")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
