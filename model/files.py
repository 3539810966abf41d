"""Model folders on disk: written whole or not at all, checked before use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import ModelCorrupt

# What a model folder needs, then what it may have.
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
CHECKSUMS = "checksums.json"
# What a folder says whose encoder gives another's embeddings: {"from": SHA-256 of the other's weights, "weights":
# SHA-256 of its own, "how": words}.
DERIVED = "derived_from.json"
OTHER_FILES = (
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "*_Pooling/config.json",
    "heads.*",
    "compression.json",  # see model.compressed
    "packed.onnx",
    DERIVED,
)


def default_cache_dir() -> Path:
    """Where converted models are kept: `$XDG_CACHE_HOME/limner`, else `~/.cache/limner`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def sha256(path: Path) -> str:
    """Of the file's content: about 0.3 s for the base encoder's 470 MB where the CPU has SHA instructions."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_files(folder: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of a model folder that match, each to its place in `target`."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            copy = target / file.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def record_checksums(folder: Path) -> None:
    """Write the SHA-256 and size of every file below `folder` into its `checksums.json`."""
    record = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS
    }
    (folder / CHECKSUMS).write_text(json.dumps(record, indent=1))


def is_intact(folder: Path) -> bool:
    """Whether every file that the folder's record names is there with the recorded size and content.

    The content is hashed whole: a size alone would let a damaged block through, and wrong weights fail silently.
    """
    try:
        record = json.loads((folder / CHECKSUMS).read_text())
        return bool(record) and all(
            (folder / name).stat().st_size == known["bytes"] for name, known in record.items()
        ) and all(sha256(folder / name) == known["sha256"] for name, known in record.items())  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def weights_checksum(folder: Path) -> str:
    """SHA-256 of `model.safetensors`: the recorded one where there is a record (checked before by `is_intact`)."""
    name = "model.safetensors"
    try:
        return str(json.loads((folder / CHECKSUMS).read_text())[name]["sha256"])
    except (FileNotFoundError, KeyError):
        return sha256(folder / name)


def calibrated_checksum(folder: Path) -> str:
    """The checksum that calibrations for the encoder of `folder` name: that of the weights whose embeddings it gives
    (see `model.vocabulary`), its own where it was derived from none, or was changed since."""
    own = weights_checksum(folder)
    file = folder / DERIVED
    if not file.is_file():
        return own
    try:
        record = json.loads(file.read_text())
        return str(record["from"]) if record["weights"] == own else own
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorrupt(f"{file} can't be read: {error!r}; derive the model again") from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; waits for another process that holds it. The system frees it if we die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
