"""`limner doctor`: what is wrong, and what mends it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from streaming import doctor as checks
from streaming import settings as configuration
from streaming.errors import SettingsError


@click.command()
@click.option("--deep", is_flag=True, help="Also load the model, and measure this machine once (about 30 s).")
@click.option("--settings", "list_settings", is_flag=True, help="List every setting: value, default, description.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(deep: bool, list_settings: bool, as_json: bool) -> None:
    """Check settings, broker, store, topics, model and clock.

    Exit code 0 when nothing is wrong (warnings are allowed), 1 otherwise.
    """
    if list_settings:
        _list_settings(as_json)
        return
    found = []
    for check in checks.run(deep=deep):
        found.append(check)
        if not as_json:
            mark = ("warn" if check.fix else "ok") if check.ok else "FAIL"
            click.echo(f"{mark:4}  {check.name:9} {check.detail}")
            if check.fix:
                click.echo(f"{'':16}-> {check.fix}")
    failed = [check.name for check in found if not check.ok]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in found]}, indent=1))
    if failed:
        click.echo(f"limner: doctor found faults in: {', '.join(failed)}", err=True)
        sys.exit(1)


def _list_settings(as_json: bool) -> None:
    """Of wrong settings too: the list is what tells which ones are known."""
    fault = None
    try:
        rows = checks.settings_table(configuration.load())
    except SettingsError as error:
        rows, fault = checks.settings_table(None), error
    if as_json:
        click.echo(json.dumps({row["name"]: row for row in rows}, indent=1))
    else:
        for row in rows:
            value = "" if row.get("value", row["default"]) == row["default"] else f"{row['value']}   default "
            about = f"   # {row['description']}" if row["description"] else ""
            click.echo(f"{row['name']} = {value}{row['default']}{about}")
    if fault:
        raise fault
