"""The engine's figures on this machine, of the model in the settings: see `model.bench`."""

from __future__ import annotations

from typing import Any

import click

from model.bench import figures
from model.compress import local_folder
from streaming import settings as settings_module

# Long enough for a leak or a machine's slow minute to show.
SOAK_S = 300.0


def run() -> dict[str, Any]:
    """Beside the naive loop and each peer that is installed; about half an hour on two cores.

    Raises:
        ModelError: the model can't be loaded.
    """
    settings = settings_module.load()
    device = "cpu" if settings.device == "auto" else settings.device
    options = figures.Options(local_folder(settings.model, settings.cache_dir), device, soak_s=SOAK_S)
    return figures.run(options, lambda said: click.echo(f"engine: {said}", err=True))
