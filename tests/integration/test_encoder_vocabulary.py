"""The base encoder trimmed to Chinese and English: what its texts keep, and what they cost."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from model import Engine
from model.encoder import read_prefix
from model.files import weights_checksum
from model.tokens import TokenReader
from model.vocabulary import TrimReport, trim

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "streaming" / "demo" / "data" / "events.jsonl.gz"


def demo_texts() -> list[str]:
    with gzip.open(DEMO, "rt", encoding="utf-8") as file:
        events = [json.loads(line) for line in file]
    return list({event.get("text") or line["description"] for event in events for line in event.get("lines") or [{}]})


def column(name: str, field: str, every: int = 1) -> list[str]:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not beside the project")
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [row[field] for row in csv.DictReader(file)][::every]


@pytest.fixture(scope="module")
def trimmed(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrimReport]:
    out = tmp_path_factory.mktemp("vocabulary") / "zh-en"
    return out, trim(base_folder, out, ("zh", "en"))


def read(folder: Path, texts: list[str]) -> list[list[str | None]]:
    reader = TokenReader(folder, 1 << 16, read_prefix(folder))
    vocabulary = {id_: piece for piece, id_ in reader.tokenizer.get_vocab().items()}
    return [[vocabulary[id_] for id_ in row.tolist()] for row in reader.read(texts)]


def test_size(trimmed: tuple[Path, TrimReport]) -> None:
    _, report = trimmed
    assert report.bytes_before > 470e6
    assert report.bytes < 150e6
    assert report.pieces > 35_000


@pytest.mark.parametrize(
    ("name", "field", "every", "floor"),
    [
        ("", "", 1, 0.90),
        ("banking77_test.csv.gz", "text", 1, 0.95),
        ("banking77_train.csv.gz", "text", 1, 0.95),
        ("shop_reviews_zh.csv.gz", "review", 20, 0.95),
    ],
)
def test_texts_of_kept_pieces_are_read_in_the_same_pieces(
    trimmed: tuple[Path, TrimReport], base_folder: Path, name: str, field: str, every: int, floor: float
) -> None:
    """And they are the most, without any text of theirs given."""
    folder, _ = trimmed
    texts = column(name, field, every) if name else demo_texts()
    kept = set(TokenReader(folder, 16).tokenizer.get_vocab())
    same = 0
    for before, after in zip(read(base_folder, texts), read(folder, texts), strict=True):
        if set(before) <= kept:
            same += 1
            assert after == before
        else:
            assert after.count("<unk>") == before.count("<unk>")  # in smaller pieces, and nothing unknown
    assert same >= floor * len(texts)


def test_embeddings_and_probabilities_stay(
    trimmed: tuple[Path, TrimReport], base_folder: Path, engine: Engine, model_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder, _ = trimmed
    assert weights_checksum(folder) != weights_checksum(base_folder)
    small = Engine.load(folder, device="cpu", packs=["ecommerce", "finance"], dtype="float32", cache_dir=model_cache)
    assert "not calibrated" not in caplog.text
    assert small.version != engine.version
    texts = ["Where is my order? It's late.", "这个手机的电池很好", "REGENCY CAKESTAND 3 TIER", "my card was stolen 😡"]
    assert small.embed(texts) == pytest.approx(engine.embed(texts), abs=1e-6)
    for facet, rows in engine.score(texts).items():
        assert small.score(texts)[facet] == pytest.approx(rows, abs=1e-5)
    outside = ["где мой заказ", "Wo ist meine Bestellung?", "내 주문은 어디에 있나요", "مرحبا"]
    assert np.isfinite(small.embed(outside)).all()
