"""What the model said of order descriptions, kept on disk: a new worker need not read a shop's range again.

Never of chats: what customers write stays in memory. A description is not stored either, only its keyed BLAKE2
digest beside its evidence; the key is the model's version, so another model finds nothing. One SQLite file a folder,
which the workers of a machine share; it is written in a thread of its own. It is a cache: one that is damaged,
locked or can't be written is done without.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from model.cache import Evidence

log = logging.getLogger(__name__)


FILE = "descriptions.sqlite"
# Batches that wait to be written. More come only where the disk is slower than the model; they are dropped.
_MOST_WAITING = 64
# Another worker's write takes a few milliseconds. Who meets one waits for it, but not for a disk that hangs.
_BUSY_S = 0.2
# Of a full file this part, the oldest, makes room: rarely enough to cost nothing, and most stays.
_OLDEST = 1 / 8
# Variables of one statement in any SQLite.
_MOST_KEYS = 500

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Evidence).decode


class DiskCache:
    """Evidence of texts under a model version, in about `max_bytes` of `folder` at most. Thread-safe."""

    def __init__(self, folder: Path, version: str, max_bytes: int) -> None:
        self.hits = 0
        self._path = folder / FILE
        self._salt = hashlib.blake2b(version.encode(), digest_size=32).digest()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # of the reader
        self._reader = self._open()
        self._writes: queue.Queue[list[tuple[bytes, bytes, int]] | None] = queue.Queue(_MOST_WAITING)
        self._writer = threading.Thread(target=self._write_all, name="disk-cache", daemon=True)
        self._writer.start()

    def get_many(self, texts: Sequence[str]) -> dict[str, Evidence]:
        """The evidence of those texts that are there, undamaged."""
        found: dict[str, Evidence] = {}
        by_key = {self._key(text): text for text in texts}
        keys = list(by_key)
        with self._lock:
            for start in range(0, len(keys), _MOST_KEYS):
                for key, content, checksum in self._select(keys[start : start + _MOST_KEYS]):
                    if _checksum(key, content) == checksum:
                        with suppress(msgspec.MsgspecError):
                            found[by_key[key]] = _decode(content)
            self.hits += len(found)
        return found

    def put_many(self, items: Iterable[tuple[str, Evidence]]) -> None:
        """Have them written, soon and elsewhere."""
        rows = []
        for text, evidence in items:
            key, content = self._key(text), _encode(evidence)
            rows.append((key, content, _checksum(key, content)))
        with suppress(queue.Full):
            self._writes.put_nowait(rows)

    def close(self) -> None:
        """Write what waits, and end."""
        self._writes.put(None)
        self._writer.join()
        with self._lock:
            if self._reader:
                self._reader.close()
                self._reader = None

    def _key(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "replace"), key=self._salt, digest_size=16).digest()

    def _select(self, keys: list[bytes]) -> list[tuple[bytes, bytes, int]]:
        if self._reader is None:
            return []
        marks = ",".join("?" * len(keys))
        statement = f"SELECT key, content, checksum FROM evidence WHERE key IN ({marks})"  # noqa: S608  # nosec B608
        try:
            return self._reader.execute(statement, keys).fetchall()
        except sqlite3.OperationalError:  # locked
            return []
        except sqlite3.DatabaseError as error:
            self._discard(error)
            self._reader.close()
            self._reader = None
            return []

    def _write_all(self) -> None:
        connection = self._open()
        while (rows := self._writes.get()) is not None:
            if connection is not None:
                try:
                    self._write(connection, rows)
                except sqlite3.OperationalError as error:  # locked, or the disk is full: the next may do better
                    log.info("%s was not written: %s", self._path, error)
                except sqlite3.DatabaseError as error:
                    self._discard(error)
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    def _write(self, connection: sqlite3.Connection, rows: list[tuple[bytes, bytes, int]]) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO evidence VALUES (?, ?, ?)", rows)
            while _size(connection) > self._max_bytes:
                connection.execute(
                    "DELETE FROM evidence WHERE rowid <= "
                    "(SELECT min(rowid) + ? * (max(rowid) - min(rowid)) FROM evidence)",
                    (_OLDEST,),
                )

    def _open(self) -> sqlite3.Connection | None:
        """A connection to the file, which is made anew where it is damaged; None where there can't be one."""
        for _ in range(2):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=OFF")  # what a power cut damages, the checksums find
                connection.execute("CREATE TABLE IF NOT EXISTS evidence (key BLOB UNIQUE, content BLOB, checksum INT)")
                return connection
            except (OSError, sqlite3.OperationalError) as error:  # no such folder, read-only, locked
                log.warning("%s can't be used, so descriptions are read anew: %s", self._path, error)
                return None
            except sqlite3.DatabaseError as error:
                self._discard(error)
        return None

    def _discard(self, error: Exception) -> None:
        """Who still has the damaged file open goes on with it until they find the same."""
        log.warning("%s is damaged and removed: %s", self._path, error)
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(FILE + suffix).unlink(missing_ok=True)


def _size(connection: sqlite3.Connection) -> int:
    """Bytes in use of a file that keeps the rest to use again; 0 where it is empty."""
    if connection.execute("SELECT NOT EXISTS (SELECT * FROM evidence)").fetchone()[0]:
        return 0
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _checksum(key: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key))
