"""Files as streams of rows or of lines, told apart by their content, in constant memory."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import operator
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from streaming.errors import LimnerError
from streaming.intake.rows import Refused

STDIN = "-"

Row = tuple[int, Sequence[Any]]  # number of the line in the file (of the row, in Parquet), values
Refuse = Callable[[int, Refused], None]

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
# Enough of a file to see a BOM, blanks and the first character of content.
_SNIFF_BYTES = 4_096
# Rows of Parquet held as Python objects at a time, and the buffer that column chunks are read through.
_PARQUET_ROWS = 8_192
_PARQUET_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """CSV or Parquet. `rows(columns, refuse)` yields the values of these columns, in this order."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str], Refuse], Iterator[Row]]
    done: Callable[[], float]  # share of the file that was read, 0 to 1


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON lines, without their line ends and without blank ones."""

    name: str
    lines: Callable[[Refuse], Iterator[tuple[int, bytes]]]
    done: Callable[[], float]


@contextmanager
def open_source(path: str, encoding: str, max_line_bytes: int) -> Iterator[Table | Lines]:
    """Open a file, or standard input for `-`.

    Raises:
        LimnerError: it is missing, empty or damaged, or is Parquet where only a stream can be; also
            while its rows are read.
    """
    name = "standard input" if path == STDIN else path
    with ExitStack() as stack:
        with _readable(name):
            raw: BinaryIO = sys.stdin.buffer if path == STDIN else stack.enter_context(Path(path).open("rb"))
            size = 0 if path == STDIN else Path(path).stat().st_size
            stream = _peekable(raw)
            packed = stream.peek(len(_GZIP)).startswith(_GZIP)
            if packed:
                stream = _peekable(stack.enter_context(gzip.GzipFile(fileobj=stream)))
            head = stream.peek(_SNIFF_BYTES)[:_SNIFF_BYTES]

        def done() -> float:
            return min(1.0, raw.tell() / size) if size else 0.0

        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(_PARQUET):
            if packed or path == STDIN:
                raise LimnerError(f"{name}: Parquet can only be read from a plain file (its index is at its end)")
            yield _parquet(name, stack.enter_context(Path(path).open("rb")))
        elif not text:
            raise LimnerError(f"{name}: nothing in it")
        elif text[:1] == b"[":
            raise LimnerError(f"{name}: a JSON array; JSON lines hold one object a line (jq -c '.[]' makes them)")
        elif text[:1] == b"{":
            yield Lines(name, lambda refuse: _lines(name, stream, max_line_bytes, refuse), done)
        else:
            yield _csv(name, stream, encoding, done)


def as_table(source: Lines, refuse: Refuse) -> Table:
    """JSON lines as a table with the columns of its first object; what a later one lacks is None."""
    lines = source.lines(refuse)
    head = list(itertools.islice(lines, 1))
    columns = tuple(_object(head[0][1]) or ()) if head else ()

    def rows(wanted: Sequence[str], refuse: Refuse) -> Iterator[Row]:
        for number, line in itertools.chain(head, lines):
            values = _object(line)
            if values is None:
                refuse(number, Refused("not JSON", "one JSON object a line was expected"))
            else:
                yield number, [values.get(column) for column in wanted]

    return Table(source.name, columns, rows, source.done)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _lines(name: str, stream: BinaryIO, limit: int, refuse: Refuse) -> Iterator[tuple[int, bytes]]:
    number = 0
    with _readable(name):
        # Read to the limit and not to the next line end: a file without any must not fill the memory.
        while line := stream.readline(limit + 2):
            number += 1
            if not line.endswith(b"\n") and len(line) > limit:
                refuse(number, Refused("too large", f"a line has at most {limit} bytes (LIMNER_MAX_RECORD_BYTES)"))
                while line and not line.endswith(b"\n"):
                    line = stream.readline(limit)
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line := line.strip():
                yield number, line


def _csv(name: str, stream: BinaryIO, encoding: str, done: Callable[[], float]) -> Table:
    # surrogateescape: one line that is not in this encoding is refused, not the whole file.
    with _readable(name):
        text = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
        header = text.readline()
        # The separators in use; a header seldom holds one in a name.
        reader = csv.reader(itertools.chain([header], text), delimiter=max(",;\t|", key=header.count))
        columns = tuple(column.strip() for column in next(reader))
        width = len(columns)

    def rows(wanted: Sequence[str], refuse: Refuse) -> Iterator[Row]:
        pick = _picker([columns.index(column) for column in wanted])
        with _readable(name):
            while True:
                number = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    refuse(number, Refused("not CSV", f"lines {number} to {reader.line_num}: {error}"))
                    continue
                if len(row) != width:
                    if row:  # a blank line is nothing
                        refuse(number, Refused("wrong number of columns", f"{width} were expected, not {len(row)}"))
                    continue
                values = pick(row)
                if not _encodable(values):
                    refuse(number, Refused("wrong encoding", f"not {encoding}: use --encoding"))
                    continue
                yield number, values

    return Table(name, columns, rows, done)


def _encodable(values: Sequence[str]) -> bool:
    text = "".join(values)
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)


def _picker(indices: list[int]) -> Callable[[list[str]], Sequence[str]]:
    # itemgetter gives no tuple for one index.
    return operator.itemgetter(*indices) if len(indices) > 1 else lambda row: [row[index] for index in indices]


def _parquet(name: str, file: BinaryIO) -> Table:
    import pyarrow.parquet  # 0.3 s and 60 MB that the other formats do without

    damaged = pyarrow.ArrowException
    with _readable(name, damaged):
        parquet = pyarrow.parquet.ParquetFile(file, buffer_size=_PARQUET_BUFFER, pre_buffer=False)
    total = parquet.metadata.num_rows
    reached = 0

    def rows(wanted: Sequence[str], refuse: Refuse) -> Iterator[Row]:
        nonlocal reached
        with _readable(name, damaged):
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=list(wanted)):
                values = [batch.column(column).to_pylist() for column in wanted]
                for row in zip(*values, strict=True):
                    reached += 1
                    yield reached, row

    return Table(name, tuple(parquet.schema_arrow.names), rows, lambda: reached / total if total else 1.0)


def _peekable(stream: Any) -> io.BufferedReader:
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)


@contextmanager
def _readable(name: str, *more: type[Exception]) -> Iterator[None]:
    damaged: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, UnicodeError, LookupError, *more)
    try:
        yield
    except damaged as error:
        raise LimnerError(f"{name} can't be read: {error}") from None
