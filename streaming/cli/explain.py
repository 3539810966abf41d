"""`limner explain TEXT`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from streaming import settings as settings_
from streaming.cli.profile import BAR_CELLS, cells, fit, printable

if TYPE_CHECKING:
    from model.explain import Explanation

WORD_CELLS = 24  # longer words are cut: the columns must line up


@click.command()
@click.argument("text")
@click.option("--facet", required=True, help="A facet of the model, such as needs.")
@click.option("--label", required=True, help="A label of the facet, such as delivery_status.")
def explain(text: str, facet: str, label: str) -> None:
    """Show what each word of TEXT does for a label's score, with the model in force."""
    settings = settings_.load()
    from model import Engine  # imports torch

    engine = Engine.load(
        settings.model,
        device=settings.device,
        packs=settings.packs,
        cache_dir=settings.cache_dir,
        cache_mb=0,
        threads=settings.torch_threads,
        long_texts=settings.long_texts,
    )
    for line in render(engine.explain(text, facet, label)):
        click.echo(line)


def render(found: Explanation) -> Iterator[str]:
    """The words in lines, in the text's order: a bar to the left takes from the score, one to the right adds to it."""
    most = max((abs(word.contribution) for word in found.words), default=0.0) or 1.0
    width = min(WORD_CELLS, max((cells(printable(word.text)) for word in found.words), default=0))
    yield click.style(f"{found.facet} {found.label}", bold=True) + f"  probability {found.probability:.3f}"
    yield ""
    for word in found.words:
        filled = round(abs(word.contribution) / most * BAR_CELLS)
        left, right = (filled, 0) if word.contribution < 0 else (0, filled)
        bar = click.style(("█" * left).rjust(BAR_CELLS), fg="red") + "│" + click.style(
            ("█" * right).ljust(BAR_CELLS), fg="green"
        )  # fmt: skip
        yield f"  {fit(word.text, width)} {bar} {word.contribution:+.2f}"
    yield ""
    yield (
        f"log-odds {found.score:+.2f}; of as many {printable(found.baseline)} {found.baseline_score:+.2f}; the words "
        f"make the difference of {found.difference:+.2f}"
    )
    yield f"model {printable(found.model)}, {found.steps} steps"
