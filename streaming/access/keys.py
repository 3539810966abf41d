"""API keys: what they look like, the file that keeps them, and the ring of those in force.

A key is `lmk_ID_SECRET`. The file has its SHA-256 and never the key. A slow hash (scrypt, Argon2) protects
passwords, which people choose among few; a secret of 256 random bits can't be found by trying, however
fast the hash is, and each request pays for the hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from streaming import logs
from streaming.access.callers import Refused, Scope
from streaming.errors import LimnerError, SettingsError

PREFIX = "lmk_"
_ID_BYTES = 4  # names one of a few keys; chosen again when taken
_SECRET_BYTES = 32

_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_log = logs.get(__name__)


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of the file. A revoked one stays, so that old audit lines still lead to a name."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}$")]
    name: str
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1)]
    namespace: str
    created: _Time
    expires: _Time | None = None
    revoked: _Time | None = None
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Requests a second; the setting `rate_limit` where there is none."""

    def fault(self, now: datetime) -> str | None:
        """Why it admits nobody now; None if it does."""
        if self.revoked is not None:
            return f"revoked at {self.revoked:%Y-%m-%d %H:%M} UTC"
        if self.expires is not None and self.expires <= now:
            return f"expired at {self.expires:%Y-%m-%d %H:%M} UTC"
        return None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key]


def generate(taken: set[str], **fields: object) -> tuple[str, Key]:
    """A new key, to be shown once, and its entry; `fields` are the entry's, without id, hash and created."""
    key_id = secrets.token_hex(_ID_BYTES)
    while key_id in taken:
        key_id = secrets.token_hex(_ID_BYTES)
    key = f"{PREFIX}{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    entry = {"id": key_id, "hash": hash_of(key), "created": datetime.now(UTC).replace(microsecond=0), **fields}
    return key, Key(**entry)  # type: ignore[arg-type]


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read(path: Path) -> list[Key]:
    """
    Raises:
        SettingsError: it is not there, or not such a file; names the field at fault.
    """
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=_File).keys
    except OSError as error:
        raise SettingsError(f"keys_file {path} can't be read ({error.strerror}): `limner keys add` makes it") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"keys_file {path} is not one that `limner keys` wrote: {error}") from None
    if len({key.id for key in keys}) != len(keys):
        raise SettingsError(f"keys_file {path} has two keys of one id: remove one")
    return keys


@contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The file's keys, to be changed in place and written back as a whole, one changer at a time.

    Raises:
        SettingsError, LimnerError: it can't be read, or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise LimnerError(f"keys_file {path} can't be written: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = read(path) if path.exists() else []
        yield keys
        _replace(path, keys)
    finally:
        os.close(folder)  # and with it the lock


def _replace(path: Path, keys: list[Key]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_File(keys)), indent=2)
    try:
        # Readable for its owner alone; in place at once, so that no service reads half of it.
        handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(written).replace(path)
    except OSError as error:
        raise LimnerError(f"keys_file {path} can't be written: {error.strerror}") from None


class Keyring:
    """The keys of the file, as it was when `refresh` last looked."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """
        Raises:
            SettingsError: see `read`.
        """
        self._path = path
        self._now = now
        self._seen = self._stamp()
        self._keys = {key.id: key for key in read(path)}

    def refresh(self) -> None:
        """Read the file if it has changed. One that can't be read changes nothing, and is logged once."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = {key.id: key for key in read(self._path)}
        except SettingsError as error:
            _log.error("keeping the keys that were in force", error=str(error))
        else:
            _log.info("keys read again", keys=len(self._keys))

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def find(self, key: str) -> Key:
        """
        Raises:
            Refused: unknown, revoked or expired.
        """
        # An id is no secret: only who has the whole key learns why it does not work.
        entry = self._keys.get(key.removeprefix(PREFIX).partition("_")[0])
        if entry is None or not hmac.compare_digest(hash_of(key), entry.hash):
            raise Refused("unauthorized", "this key is not known")
        if fault := entry.fault(self._now()):
            raise Refused("unauthorized", f"key {entry.id} was {fault}")
        return entry
