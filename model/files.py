"""Model folders on disk: written whole or not at all, checked before use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKSUMS = "checksums.json"


def default_cache_dir() -> Path:
    """Where converted models are kept: `$XDG_CACHE_HOME/limner`, else `~/.cache/limner`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def sha256(path: Path) -> str:
    """Of the file's content: about 0.3 s for the base encoder's 470 MB where the CPU has SHA instructions."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_checksums(folder: Path) -> None:
    """Write the SHA-256 and size of every file of `folder` into its `checksums.json`."""
    record = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name != CHECKSUMS
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


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; waits for another process that holds it. The system frees it if we die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
