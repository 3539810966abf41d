"""Files are told apart by content and read as streams; each damaged line is named."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from streaming.errors import LimnerError
from streaming.events import Limits
from streaming.intake import files
from streaming.intake.jsonlines import read_events
from streaming.intake.rows import Refused

CSV = "order,text\n1,one\n2,zwölf\n"


def rows(path: Path, columns: tuple[str, ...] = ("text", "order"), encoding: str = "utf-8-sig") -> Any:
    refused: list[tuple[int, str]] = []

    def refuse(number: int, why: Refused) -> None:
        refused.append((number, why.reason))

    with files.open_source(str(path), encoding, 1_000) as source:
        table = source if isinstance(source, files.Table) else files.as_table(source, refuse)
        return [(number, tuple(values)) for number, values in table.rows(columns, refuse)], refused


def test_content_tells_the_format_whatever_the_name(tmp_path: Path) -> None:
    wanted = [("one", "1"), ("zwölf", "2")]
    json_lines = '{"order": "1", "text": "one"}\n\n{"text": "zwölf", "order": "2"}\n'
    table = pa.table({"order": ["1", "2"], "text": ["one", "zwölf"]})
    for name, content in {
        "a.parquet": CSV.encode(),
        "b.csv": gzip.compress(CSV.encode()),
        "c.csv": gzip.compress(CSV.encode()[:20]) + gzip.compress(CSV.encode()[20:]),
        "d.csv": b"\xef\xbb\xbf" + CSV.encode(),
        "e.csv": CSV.replace(",", ";").replace("\n", "\r\n").encode(),
        "f.csv": json_lines.encode(),
        "g.csv": gzip.compress(json_lines.encode()),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert [values for _, values in rows(path)[0]] == wanted, name
    path = tmp_path / "h.csv"
    pyarrow.parquet.write_table(table, path)
    assert rows(path) == ([(1, wanted[0]), (2, wanted[1])], [])


def test_csv_line_numbers_count_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'order,text\n1,"two\nlines"\n2\n\n3,\xff\n4,last\n')
    assert rows(path) == (
        [(2, ("two\nlines", "1")), (7, ("last", "4"))],
        [(4, "wrong number of columns"), (6, "wrong encoding")],
    )
    assert rows(path, encoding="latin-1")[0][1] == (6, ("ÿ", "3"))


def test_json_lines_that_are_none_are_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "order": "1"}\n{"text":\n"x"\n' + '{"text": "' + "x" * 2_000 + '"}\n{"text": "b"}')
    assert rows(path) == (
        [(1, ("a", "1")), (5, ("b", None))],
        [(2, "not JSON"), (3, "not JSON"), (4, "too large")],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing in it"),
        (gzip.compress(b""), "nothing in it"),
        (b"[\n{}\n]", "JSON array"),
        (b"PAR1 and no more", "can't be read"),
        (gzip.compress(b"PAR1 and no more"), "plain file"),
        (gzip.compress(CSV.encode() * 9_000)[:-100], "a.csv can't be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(LimnerError, match=message):
        rows(path)


def test_events_keep_their_bytes_and_envelopes_are_taken_apart() -> None:
    chat = b'{"text":"hi",  "event_id":"e1","customer_id":"c1","ts":1317403200000}'
    order = (
        b'{"event_id":"o1","customer_id":"c2","ts":"2011-09-30T17:20:00Z","order_id":"1","currency":"GBP",'
        b'"lines":[{"sku":"s","description":"d","quantity":1,"unit_price":2}]}'
    )
    envelope = b'{"events":[' + chat + b"," + chat.replace(b"c1", b"c3") + b',{"text":"no id"}]}'
    refused: list[tuple[int, str]] = []

    def read(lines: list[bytes], kind: Any = None) -> list[Any]:
        limits = Limits(max_record_bytes=1 << 20, max_future_ms=0)
        refuse = lambda number, why: refused.append((number, why.reason))  # noqa: E731
        return list(read_events(enumerate(lines, 1), kind, limits, 1_800_000_000_000, refuse))

    assert read([chat, order]) == [(1, "chat", "c1", chat), (2, "order", "c2", order)]
    assert [ready[:3] for ready in read([envelope], "chat")] == [(1, "chat", "c1"), (1, "chat", "c3")]
    assert refused == [(1, "invalid")]
    refused.clear()
    assert read([b"{", b'{"a": 1}', b'{"text": "no id"}', chat.replace(b"1317", b"9317")]) == []
    assert refused == [(1, "not JSON"), (2, "neither chat nor order"), (3, "invalid"), (4, "future")]
