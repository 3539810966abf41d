"""The command line `limner`. Each command lives in a module of its own, imported only when it is called.

Exit code 0: done. 2: wrong use. 1: failed, with one clear line on stderr.
"""

from __future__ import annotations

import importlib
import sys

import click

from model.errors import ModelError
from streaming.errors import LimnerError, SettingsError

# name -> module of streaming.cli that holds a click command of the same name, and its one-line help
COMMANDS = {
    "up": "Start everything on this machine: servers, worker, HTTP service.",
    "worker": "Consume events and keep profiles current.",
    "serve": "Run the HTTP service.",
    "keys": "Make, list, revoke and rotate API keys of the HTTP service.",
    "topics": "Create or verify the Kafka topics.",
    "load": "Send files of events to Kafka.",
    "profile": "Show one customer's profile, or export all that is known.",
    "identity": "Link ids of one person, undo it, block an id that several people share.",
    "consent": "Show or change what a customer grants and denies.",
    "erase": "Forget a customer, with a receipt.",
    "explain": "Show what each word of a text does for a label's score.",
    "doctor": "Check settings, broker, store, topics, model and clock.",
    "models": "Make a model smaller or faster, and see what it costs.",
    "bench": "Measure, beside a baseline in the same run.",
}


class _LazyGroup(click.Group):
    """`limner profile ID` must not wait for torch to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"streaming.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="limner")
def cli() -> None:
    """limner keeps live customer profiles from chat and order events."""


def main() -> None:
    try:
        code = cli.main(standalone_mode=False)  # what a command gave to `ctx.exit`, or None
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ModuleNotFoundError as error:
        extras = {"torch": "worker", "faust": "worker", "blacksheep": "serve", "jwt": "serve", "pyarrow": "load"}
        extra = extras.get(error.name or "", "all")
        click.echo(f"limner: {error.name} is not installed: pip install 'limner[{extra}]'", err=True)
        sys.exit(1)
    except SettingsError as error:
        click.echo(f"limner: {error}", err=True)
        sys.exit(2)
    except (LimnerError, ModelError) as error:
        click.echo(f"limner: {error}", err=True)
        sys.exit(1)
