"""`limner models`: what can be done to a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from streaming import settings as settings_module


@click.group()
def models() -> None:
    """Work on model folders."""


@models.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder; it must not be there yet.")
@click.option("--vocabulary", help="Keep only the pieces of these languages, like zh,en.")
@click.option("--int8", "in_int8", is_flag=True, help="As many layers in 8 bits as --min-agreement allows.")
@click.option("--onnx", "in_onnx", is_flag=True, help="Layers in ONNX Runtime, over packed tokens.")
@click.option(
    "--texts", help="Measure with these CSV files (a column text or review, perhaps category), comma between."
)
@click.option("--limit", type=click.IntRange(min=20), help="Of each file at most so many texts.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), default=0.995, show_default=True,
              help="Write nothing when the best label stays for a smaller share of texts.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object on stdout.")
def compress(model: str, out: Path, vocabulary: str | None, in_int8: bool, in_onnx: bool, texts: str | None,
             limit: int | None, min_agreement: float, as_json: bool) -> None:  # fmt: skip
    """Write a smaller or faster form of MODEL ("base" or a folder) and what it costs.

    Both forms are measured on the same texts, BANKING77's and Chinese reviews where they lie beside the checkout, else
    the demo's chats; better, give --texts of your own.
    """
    if not (vocabulary or in_int8 or in_onnx):
        raise click.UsageError("say what to do: --vocabulary, --int8 or --onnx")
    if in_int8 and in_onnx:
        raise click.UsageError("--int8 and --onnx are two forms of the same layers: give one")
    from model import compress as compression
    from model.corpora import read_corpora

    folder = compression.local_folder(model, settings_module.load().cache_dir)
    report = compression.compress(
        folder,
        out,
        read_corpora([Path(file) for file in (texts or "").split(",") if file], limit),
        languages=[language.strip() for language in (vocabulary or "").split(",") if language.strip()],
        in_int8=in_int8,
        in_onnx=in_onnx,
        min_agreement=min_agreement,
        progress=lambda said: click.echo(said, err=True),
    )
    click.echo(json.dumps(report, ensure_ascii=False) if as_json else _words(out, report))


def _words(out: Path, report: dict[str, Any]) -> str:
    layers = f"int8 layers  {report['int8_layers']} of {report['linear_layers']}\n" if report["int8_layers"] else ""
    by_task = "\n".join(
        f"  {task:24} " + "  ".join(f"{corpus} {share:.2%}" for corpus, share in shares.items())
        for task, shares in report["agreement_by"].items()
    )
    return (
        f"written      {out}\n"
        f"size         {report['mb']} MB, before {report['mb_before']} MB\n"
        f"speed        {report['texts_per_s']} texts/s, before {report['texts_per_s_before']}\n"
        f"{layers}"
        f"cosine       at least {report['cosine_min']:.5f}, mean {report['cosine_mean']:.5f}\n"
        f"best label stays for\n{by_task}"
    )
