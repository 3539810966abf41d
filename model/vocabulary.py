"""A smaller model for a deployment's languages: only the word embeddings of pieces that they use.

Of the base encoder's 470 MB, 384 MB are the embeddings of 250,002 pieces in about 100 languages. A text all of whose
pieces are kept gets the same pieces, and so the same embedding: what is kept is the best of all segmentations still,
of fewer ones (Unigram), or the longest match still (WordPiece). A text with a removed piece is read in smaller ones,
down to single characters.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from model.encoder import read_prefix
from model.errors import ModelCorrupt, ModelError, ModelUnavailable
from model.files import DERIVED, OTHER_FILES, calibrated_checksum, copy_files, record_checksums, sha256
from model.taxonomy import PACKS, load_packs
from model.tokens import TokenReader

# Language -> scripts, as Unicode's character names begin. English has no script of its own: 110,000 pieces are Latin,
# so its pieces are those of its words.
SCRIPTS = {
    "ar": ("ARABIC",),
    "bg": ("CYRILLIC",),
    "cs": ("LATIN",),
    "da": ("LATIN",),
    "de": ("LATIN",),
    "el": ("GREEK",),
    "en": (),
    "es": ("LATIN",),
    "fa": ("ARABIC",),
    "fi": ("LATIN",),
    "fr": ("LATIN",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "id": ("LATIN",),
    "it": ("LATIN",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL",),
    "nl": ("LATIN",),
    "pl": ("LATIN",),
    "pt": ("LATIN",),
    "ru": ("CYRILLIC",),
    "sv": ("LATIN",),
    "th": ("THAI",),
    "tr": ("LATIN",),
    "uk": ("CYRILLIC",),
    "vi": ("LATIN",),
    "zh": ("CJK",),
}
WORDS = PACKS / "frequent_en.txt"
# Not in the list, whose source has no apostrophes.
CONTRACTIONS = (
    *("ain't", "aren't", "can't", "cannot", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't"),
    *("isn't", "mightn't", "mustn't", "needn't", "shouldn't", "wasn't", "weren't", "won't", "wouldn't"),
    *("i'm", "i've", "i'd", "i'll", "you're", "you've", "it's", "that's", "what's", "let's"),
)
# So many of the most frequent words are kept with a capital, without a space before them ("/word", "好word"), and (up
# to four letters) in capitals. Together with 18,000 words, 97 % of BANKING77's messages keep all their pieces, 93 %
# without these forms; kept for every word they cost 7 MB for 1 % more.
CAPITALISED, GLUED, CAPITALS = 5000, 2000, 8000
# Scripts of thousands of characters; of others' alphabets every letter is kept, so that no text becomes unknown.
LARGE_SCRIPTS = ("CJK", "HANGUL", "ETHIOPIC")

Kept = NDArray[np.bool_]


@dataclass(frozen=True)
class TrimReport:
    """`bytes` of the whole folder; of the texts given, how many there were and how many are read in the same pieces."""

    pieces_before: int
    pieces: int
    bytes_before: int
    bytes: int
    texts: int
    texts_same: int


def trim(
    folder: Path,
    out_folder: Path,
    languages: Sequence[str] = ("zh", "en"),
    texts: Iterable[str] | None = None,
    min_count: int = 1,
) -> TrimReport:
    """Write the model of `folder` to the new `out_folder` with the pieces of these languages, of the shipped packs'
    phrases, and those that occur in `texts` at least `min_count` times.

    Calibrations fitted on the model hold for the smaller one too.

    Raises:
        ModelError: `out_folder` is there already, or a language is unknown.
        ModelUnavailable: the tokenizer is neither Unigram nor WordPiece, or `folder` is no model folder.
        ModelCorrupt: a file can't be read.
    """
    if unknown := [language for language in languages if language not in SCRIPTS]:
        raise ModelError(f"language {unknown[0]!r} is unknown: use {', '.join(SCRIPTS)}; for others give texts")
    if out_folder.exists():
        raise ModelError(f"{out_folder} is there already: models are written to new folders and never changed")
    # Whole texts: a window or a cut would hide pieces.
    reader = TokenReader(folder, 1 << 20, read_prefix(folder))
    description = _json(folder / "tokenizer.json")
    pieces = _pieces(description, folder)
    given = list(texts or ())
    phrases = [
        phrase
        for pack in load_packs([path.stem for path in sorted(PACKS.glob("*.yaml"))])
        for facet in pack.facets
        for label in facet.phrases
        for phrase in label
    ]
    kept = _by_script(pieces, languages)
    kept |= _counts(reader, phrases, len(pieces)) > 0
    if "en" in languages:
        kept |= _counts(reader, _english(), len(pieces)) > 0
    kept |= _counts(reader, given, len(pieces)) >= max(min_count, 1)
    kept |= _needed(description, pieces)
    config = _json(folder / "config.json")
    if config.get("model_type") in ("roberta", "xlm-roberta"):
        kept[: config.get("pad_token_id", 1) + 1] = True  # from the padding's id on they count positions
    ids = np.flatnonzero(kept)
    new_id = {int(old): new for new, old in enumerate(ids)}
    how = f"vocabulary {','.join(languages)}" + (f" and {len(given)} texts" if given else "")
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out_folder.parent, prefix=f".{out_folder.name}-") as temporary:
        fresh = Path(temporary) / out_folder.name
        fresh.mkdir()
        copy_files(folder, fresh, OTHER_FILES)
        (fresh / "tokenizer.json").write_text(json.dumps(_remapped(description, kept, new_id), ensure_ascii=False))
        (fresh / "config.json").write_text(json.dumps(_config(config, new_id), indent=1))
        _write_rows(folder, fresh, int(config["vocab_size"]), ids)
        own = sha256(fresh / "model.safetensors")
        record = {"weights": own, "from": calibrated_checksum(folder), "how": how}
        (fresh / DERIVED).write_text(json.dumps(record, indent=1))
        record_checksums(fresh)
        fresh.rename(out_folder)
    return TrimReport(
        pieces_before=len(pieces),
        pieces=len(ids),
        bytes_before=_size(folder),
        bytes=_size(out_folder),
        texts=len(given),
        texts_same=sum(bool(kept[row].all()) for part in _parts(given) for row in reader.read(part)),
    )


def _by_script(pieces: Sequence[str], languages: Sequence[str]) -> Kept:
    """Pieces whose letters are all of the languages' scripts (ASCII goes with any but alone), those without letters,
    and single characters."""
    scripts = {script for language in languages for script in SCRIPTS[language]}

    def keep(piece: str) -> bool:
        bare = piece.removeprefix("▁").removeprefix("##")
        found = {_script(character) for character in bare} - {""}
        if len(bare) == 1:
            return found <= scripts or not found & set(LARGE_SCRIPTS)
        return found <= scripts or (bool(found & scripts) and found <= scripts | {"LATIN"} and _plain(bare))

    return np.array([keep(piece) for piece in pieces])


def _plain(piece: str) -> bool:
    return not any(character.isalpha() and "\x7f" < character < "\u0250" for character in piece)


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """As Unicode's name of a letter, mark or digit begins; "" for ASCII digits, punctuation, symbols and emoji."""
    if unicodedata.category(character)[0] not in "LMN" or character in "0123456789":
        return ""
    return unicodedata.name(character, "UNNAMED").split()[0]


def _english() -> Iterator[str]:
    """The frequent words in the forms in which they are written."""
    lines = WORDS.read_text("utf-8").splitlines()
    words = [*CONTRACTIONS, *(line for line in lines if not line.startswith("#"))]
    for rank, word in enumerate(words):
        yield word
        if rank < CAPITALISED:
            yield word.capitalize()
        if rank < GLUED:
            yield f"/{word}"
        if rank < CAPITALS and len(word) <= 4:
            yield f"x {word.upper()} /{word.upper()}"  # the x: texts all in capitals are read in lower case


def _counts(reader: TokenReader, texts: Iterable[str], pieces: int) -> NDArray[np.intp]:
    """How often each piece occurs."""
    counts = np.zeros(pieces, np.intp)
    for part in _parts(texts):
        ids = reader.read(part).ids
        counts += np.bincount(ids[ids < pieces], minlength=pieces)
    return counts


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while part := list(islice(remaining, 1024)):
        yield part


def _needed(description: dict[str, Any], pieces: Sequence[str]) -> Kept:
    """Control and other added tokens, the unknown one, and the piece of lowest score, from which Unigram takes what
    an unknown character costs."""
    needed = np.zeros(len(pieces), bool)
    needed[[token["id"] for token in description["added_tokens"] if token["id"] < len(pieces)]] = True
    model = description["model"]
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        needed[model["unk_id"] or 0] = needed[int(np.argmin(scores))] = True
    else:
        needed[model["vocab"][model["unk_token"]]] = True
    return needed


def _pieces(description: dict[str, Any], folder: Path) -> list[str]:
    """Pieces by id."""
    model = description["model"]
    if model["type"] == "Unigram":
        return [piece for piece, _ in model["vocab"]]
    if model["type"] == "WordPiece":
        by_id = {id_: piece for piece, id_ in model["vocab"].items()}
        if sorted(by_id) == list(range(len(by_id))):
            return [by_id[id_] for id_ in range(len(by_id))]
    raise ModelUnavailable(
        f"{folder / 'tokenizer.json'} is a {model['type']} tokenizer, whose pieces can't be removed; those of Unigram "
        f"and WordPiece can"
    )


def _remapped(description: dict[str, Any], kept: Kept, new_id: dict[int, int]) -> dict[str, Any]:
    """tokenizer.json with the kept pieces under their new ids."""
    model = dict(description["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for entry, keep in zip(model["vocab"], kept, strict=True) if keep]
        model["unk_id"] = None if model["unk_id"] is None else new_id[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_id[id_] for piece, id_ in model["vocab"].items() if id_ in new_id}
    added = [token | {"id": new_id[token["id"]]} for token in description["added_tokens"] if token["id"] in new_id]
    template = _template(description["post_processor"], new_id)
    return description | {"model": model, "added_tokens": added, "post_processor": template}


def _template(processor: Any, new_id: dict[int, int]) -> Any:
    """The post-processor with its tokens' new ids."""
    kind = (processor or {}).get("type")
    if kind == "TemplateProcessing":
        tokens = {
            name: token | {"ids": [new_id[id_] for id_ in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return processor | {"special_tokens": tokens}
    if kind in ("BertProcessing", "RobertaProcessing"):
        return processor | {end: [processor[end][0], new_id[processor[end][1]]] for end in ("sep", "cls")}
    if kind == "Sequence":
        return processor | {"processors": [_template(part, new_id) for part in processor["processors"]]}
    return processor


def _config(config: dict[str, Any], new_id: dict[int, int]) -> dict[str, Any]:
    moved = {
        name: new_id[value]
        for name, value in config.items()
        if name.endswith("_token_id") and isinstance(value, int) and value in new_id
    }
    return config | moved | {"vocab_size": len(new_id)}


def _write_rows(folder: Path, out_folder: Path, vocabulary: int, ids: NDArray[np.intp]) -> None:
    """`model.safetensors` with the kept rows of every tensor that has one row a piece."""
    file = folder / "model.safetensors"
    try:
        weights = load_file(file)
    except Exception as error:  # safetensors raises its own class, and OSError
        raise ModelCorrupt(f"{file} can't be read: {error}; fetch or convert the model again") from error
    rows = torch.from_numpy(ids)
    trimmed = {name: value[rows] if value.shape[:1] == (vocabulary,) else value for name, value in weights.items()}
    if not any(value.shape[:1] == (vocabulary,) for value in weights.values()):
        raise ModelCorrupt(f"{file} has no tensor of {vocabulary} rows, the vocab_size of config.json")
    save_file(trimmed, out_folder / file.name, metadata={"format": "pt"})


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelUnavailable(f"{file.parent} is not a model folder: it has no {file.name}") from None
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{file} can't be read: {error}") from error
    return content


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
