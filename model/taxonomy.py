"""Packs: the label taxonomies of domains, in YAML. What a text may be about, and for how long it matters.

    name: shop
    include: [common]              # other packs whose facets come along
    facets:
      interests:
        kind: multi                # several labels may hold (sigmoid); "single": exactly one (softmax)
        sources: [chat, order]     # what this facet is read from
        half_life: 90d             # after which a piece of evidence weighs half: number and ms, s, m, h, d or w
        threshold: 0.5             # a label becomes evidence from this probability on
        top_k: 3                   # at most this many labels of the facet per text
        background: true           # only "single": "none of these" competes, so that off-topic texts score low
        labels:
          garden: {en: "plant pots, spade", zh: 园艺}      # a phrase, or a list of phrases, per language

A shipped pack is called by its name, any other by the path of its file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
import yaml

from model.errors import PackError

PACKS = Path(__file__).parent / "packs"
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
# Names travel in Redis keys, URLs and metrics.
_NAME = re.compile(r"^[a-z][a-z0-9_]{0,39}$")

T = TypeVar("T")
Kind = Literal["multi", "single"]
Source = Literal["chat", "order"]
Phrases = Annotated[str, msgspec.Meta(min_length=1)] | Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1)
]  # fmt: skip


class Facet(msgspec.Struct, frozen=True, kw_only=True):
    """A family of labels. `phrases[i]` describe `labels[i]`; a trained facet has none."""

    name: str
    kind: Kind
    sources: tuple[Source, ...]
    half_life_ms: int
    threshold: float
    top_k: int
    background: bool
    labels: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...] = ()


class Pack(msgspec.Struct, frozen=True):
    """One file's own facets; `path` is where its calibration is looked for (`NAME.calibration.json` beside it)."""

    name: str
    path: Path
    facets: tuple[Facet, ...]


class _LabelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    en: Phrases
    zh: Phrases


class _FacetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Kind
    sources: Annotated[list[Source], msgspec.Meta(min_length=1)]
    half_life: str
    threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    top_k: Annotated[int, msgspec.Meta(ge=1, le=32)]
    labels: Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
    background: bool = False


class _PackFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    facets: dict[str, Any]
    include: list[str] = []


def load_packs(names: Sequence[str]) -> list[Pack]:
    """The packs of these names or paths with all that they include, each once, included ones last.

    Raises:
        PackError: a pack is unknown or breaks a rule, or two packs define one facet differently.
    """
    packs: dict[Path, Pack] = {}
    waiting = [(name, Path.cwd()) for name in names]
    while waiting:
        name, folder = waiting.pop(0)
        path = _locate(name, folder)
        if path not in packs:
            packs[path], includes = _read(path)
            waiting += [(include, path.parent) for include in includes]
    seen: dict[str, tuple[Pack, Facet]] = {}
    for pack in packs.values():
        for facet in pack.facets:
            other, known = seen.setdefault(facet.name, (pack, facet))
            if known != facet:
                raise PackError(
                    f"facet {facet.name!r} is defined differently in {other.path} and {pack.path}: "
                    f"rename one, or move it to a pack that both `include`"
                )
    return list(packs.values())


def _locate(name: str, folder: Path) -> Path:
    shipped = PACKS / f"{name}.yaml"
    if _NAME.match(name) and shipped.is_file():
        return shipped.resolve()
    path = (folder / name).resolve()
    if path.is_file():
        return path
    known = ", ".join(sorted(file.stem for file in PACKS.glob("*.yaml")))
    raise PackError(f"there is no pack {name!r}: shipped are {known}; any other is the path of a YAML file")


def _read(path: Path) -> tuple[Pack, list[str]]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PackError(f"{path} can't be read as YAML: {error}") from error
    file = _convert(content, _PackFile, f"{path}")
    _check_name(file.name, f"{path}: name")
    facets = tuple(_facet(name, value, f"{path}: facet {name!r}") for name, value in file.facets.items())
    if not facets and not file.include:
        raise PackError(f"{path}: has neither a facet nor an `include`")
    return Pack(file.name, path, facets), file.include


def _facet(name: str, value: Any, where: str) -> Facet:
    _check_name(name, where)
    file = _convert(value, _FacetFile, where)
    if file.background and file.kind == "multi":
        raise PackError(f"{where}: `background` is for kind single; a multi facet's labels may all be absent anyway")
    if file.kind == "single" and len(file.labels) + file.background < 2:
        raise PackError(f"{where}: kind single needs two labels, or one and `background: true`")
    phrases = []
    for label, content in file.labels.items():
        _check_name(label, f"{where}, label {label!r}")
        texts = _convert(content, _LabelFile, f"{where}, label {label!r}")
        phrases.append(tuple(_as_list(texts.en) + _as_list(texts.zh)))
    return Facet(
        name=name,
        kind=file.kind,
        sources=tuple(file.sources),
        half_life_ms=_milliseconds(file.half_life, where),
        threshold=file.threshold,
        top_k=file.top_k,
        background=file.background,
        labels=tuple(file.labels),
        phrases=tuple(phrases),
    )


def _as_list(phrases: str | list[str]) -> list[str]:
    return [phrases] if isinstance(phrases, str) else phrases


def _check_name(name: str, where: str) -> None:
    if not isinstance(name, str) or not _NAME.match(name):
        raise PackError(f"{where}: a name is a lower-case letter, then at most 39 letters, digits or _, not {name!r}")


def _milliseconds(value: str, where: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", value)
    length = float(match[1]) * _UNIT_MS[match[2]] if match else 0.0
    if not length:
        raise PackError(f"{where}: half_life {value!r} is not a number above 0 with ms, s, m, h, d or w, like 30d")
    return round(length)


def _convert(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        hint = ""
        if "unknown field" in str(error):
            hint = f"; known are {', '.join(kind.__struct_fields__)}"  # type: ignore[attr-defined]
        elif "enum value" in str(error):
            hint = f"; a kind is {_or(Kind)}, a source {_or(Source)}"
        raise PackError(f"{where}: {error}{hint}") from None


def _or(literal: Any) -> str:
    return " or ".join(get_args(literal))
