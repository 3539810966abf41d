"""Texts to measure with: CSV files with a column of texts and, where there is one, a column of their labels."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from model.errors import ModelUnavailable

TEXT_COLUMNS = ("text", "review")
LABEL_COLUMNS = ("category", "cat")
ORDER_COLUMNS = ("Description", "InvoiceNo")

_ROOT = Path(__file__).parents[1]
# Beside a checkout: name, file, and how many of its texts. The issue of each figure names these numbers.
_DATA = _ROOT.parent / "shared" / "data"
_DEFAULT = {"banking77": ("banking77_test.csv.gz", 3_080), "reviews": ("shop_reviews_zh.csv.gz", 3_000)}
_ORDERS = "online_retail_2010-12_2011-09.csv.gz"
_DEMO = _ROOT / "streaming" / "demo" / "data" / "events.jsonl.gz"
# Of a file given by name: as many as of BANKING77's.
_MOST_TEXTS = 3_080
# What one worker scores at a time: LIMNER_ORDER_BATCH's default.
ORDERS_A_BATCH = 256


@dataclass(frozen=True)
class Corpus:
    """`labels` are the names that its label column takes, none where it has no such column."""

    name: str
    texts: list[str]
    labels: list[str]


def read_corpora(files: Sequence[Path] = (), limit: int | None = None) -> list[Corpus]:
    """Those files; without any, BANKING77's test texts and the Chinese reviews where they lie beside the checkout,
    else the demo's chats. Of each at most `limit` texts, spread evenly over the file.

    Raises:
        ModelUnavailable: a file is not there, or has no column of texts.
    """
    if files:
        return [_read(file.name.split(".")[0], file, limit or _MOST_TEXTS) for file in files]
    if all((_DATA / file).is_file() for file, _ in _DEFAULT.values()):
        return [_read(name, _DATA / file, min(limit or most, most)) for name, (file, most) in _DEFAULT.items()]
    chats = [event["text"] for event in _demo() if "text" in event]
    return [Corpus("demo_chats", _spread(list(dict.fromkeys(chats)), limit or _MOST_TEXTS), [])]


def _read(name: str, file: Path, limit: int) -> Corpus:
    try:
        with _open(file) as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames or []
            text = next((column for column in TEXT_COLUMNS if column in columns), None)
            label = next((column for column in LABEL_COLUMNS if column in columns), None)
            if text is None:
                raise ModelUnavailable(
                    f"{file} has no column {' or '.join(TEXT_COLUMNS)}: found {', '.join(columns) or 'nothing'}"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelUnavailable(f"{file} can't be read as CSV in UTF-8: {error}") from error
    labels = sorted({row[label].replace("_", " ") for row in rows if row[label]}) if label else []
    return Corpus(name, [row[text] for row in _spread(rows, limit)], labels)


def order_batches(limit: int) -> tuple[str, list[list[str]]]:
    """Where they are from, and the first `limit` order lines as they come: the descriptions of 256 orders a batch."""
    file = _DATA / _ORDERS
    orders: list[list[str]] = []
    if file.is_file():
        description, number = ORDER_COLUMNS
        last = None
        with _open(file) as lines:
            for count, row in enumerate(csv.DictReader(lines)):
                if count == limit:
                    break
                if row[number] != last:
                    orders.append([])
                    last = row[number]
                orders[-1].append(row[description])
    else:
        orders = [[line["description"] for line in event["lines"]] for event in _demo() if "lines" in event]
    batches = [
        [text for order in orders[start : start + ORDERS_A_BATCH] for text in order]
        for start in range(0, len(orders), ORDERS_A_BATCH)
    ]
    return "online_retail" if file.is_file() else "demo", batches


def _demo() -> list[dict[str, Any]]:
    if not _DEMO.is_file():
        raise ModelUnavailable("there are no texts to measure with: give --texts FILE, a CSV with a column text")
    with gzip.open(_DEMO, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _open(file: Path) -> IO[str]:
    csv.field_size_limit(sys.maxsize)  # a text may be longer than csv's 128 KB
    return gzip.open(file, "rt", encoding="utf-8-sig", newline="") if file.suffix == ".gz" else file.open(
        encoding="utf-8-sig", newline=""
    )  # fmt: skip


def _spread(rows: list[Any], limit: int) -> list[Any]:
    return rows if len(rows) <= limit else [rows[index * len(rows) // limit] for index in range(limit)]
