"""Compressed models: the same answers or the loss named, and nothing written below the agreement asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from model import Engine, compressed, int8, onnx_export, packed
from model.compress import compress
from model.corpora import Corpus
from model.encoder import Encoder
from model.errors import ModelCorrupt, ModelError
from model.files import is_intact
from tests.integration.test_encoder_families import BERT, SMALL, TEXTS, make

onnx = pytest.importorskip("onnx")
CPU = torch.device("cpu")
WIDE = {**BERT, "hidden_size": 64, "intermediate_size": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, norms and biases."""
    made = tmp_path_factory.mktemp("models") / "small"
    made.mkdir()
    make(made, transformers.BertConfig(**SMALL, **WIDE))
    return made


@pytest.fixture
def corpora() -> list[Corpus]:
    words = ["where", "is", "my", "order", "card", "mug", "blue", "refund", "please", "lost"]
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(120)]
    return [Corpus("chats", texts, []), Corpus("named", texts[:60], texts[60:])]


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a small model's speed is says nothing, least of all beside other tests."""
    monkeypatch.setattr("model.compress._rates", lambda encoders, corpora: [100.0, 150.0])


def embeddings(folder: Path) -> np.ndarray:
    return Encoder(folder, CPU, torch.float32).embed(TEXTS)


def test_onnx_graphs_answer_as_the_packed_forward(folder: Path) -> None:
    encoder = Encoder(folder, CPU, torch.float32)
    assert encoder.weights is not None
    tokens = encoder.tokenize(TEXTS)
    lengths = tokens.lengths.tolist()
    ids = torch.from_numpy(tokens.ids)
    with torch.inference_mode():
        right = packed.hidden(encoder.weights, ids, lengths)
    session = onnx_export.session(onnx_export.packed_graph(encoder.weights), 1)
    torch.testing.assert_close(onnx_export.packed_hidden(encoder.weights, session, ids, lengths), right)
    padded = onnx_export.session(onnx_export.padded_graph(encoder.weights), 1)
    rows = list(tokens)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    given = np.zeros_like(mask)
    given[mask > 0] = np.concatenate(rows)
    (states,) = padded.run(None, {"input_ids": given, "attention_mask": mask})
    np.testing.assert_allclose(states[mask > 0], right.numpy(), rtol=1e-3, atol=1e-5)


def test_8_bit_layers_are_near_and_know_nothing_of_the_batch(folder: Path) -> None:
    encoder = Encoder(folder, CPU, torch.float32)
    assert encoder.weights is not None
    right = encoder.embed(TEXTS)
    layers = int8.with_int8(encoder.weights, int8.linear_names(encoder.weights))
    encoder.hidden = partial(packed.hidden, layers, kernels=int8.KERNELS)
    assert 0.999 < (encoder.embed(TEXTS) * right).sum(axis=1).min() < 0.9999999
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    x[4] *= 1e4  # a token far out of the others' range
    together = int8.linear(x, layers.layers[0].up)
    for row, found in zip(x, together, strict=True):
        alone = int8.linear(row[None], layers.layers[0].up)[0]
        torch.testing.assert_close(alone, found, rtol=0, atol=1e-6 * float(row.abs().max()))


def test_8_bit_products_do_not_saturate() -> None:
    """Largest activations by largest weights: what AVX2 would cut off in its 16-bit sums, were weights of 8 bits."""
    x = torch.full((3, 512), 1.0)
    x[:, 0] = 0.0  # so that the range is 0 to 1, and all others are 255 of 255
    weight, bias = torch.full((8, 512), 0.5), torch.arange(8.0)
    found = int8.linear(x, int8._quantised((weight, bias)))
    torch.testing.assert_close(found, torch.full((3, 8), 511 * 0.5) + bias)


@pytest.mark.usefixtures("faster")
def test_int8_is_written_with_its_cost_and_loads(folder: Path, tmp_path: Path, corpora: list[Corpus]) -> None:
    out = tmp_path / "out"
    report = compress(folder, out, corpora, in_int8=True, min_agreement=0.9)
    assert report["agreement"] >= 0.9 and 0 < report["int8_layers"] <= report["linear_layers"] == 8
    assert report["texts"] == {"chats": 120, "named": 60} and report["texts_per_s"] > 0
    assert json.loads((out / compressed.FILE).read_text())["quality"] == report
    assert is_intact(out) and not list(tmp_path.glob(".out-*"))
    plain, small = embeddings(folder), embeddings(out)
    assert not np.array_equal(plain, small) and (plain * small).sum(axis=1).min() > 0.999
    # what a GPU, explain and training read is the original
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    engine, before = (Engine.load(path, device="cpu", packs=[]) for path in (out, folder))
    assert engine.version.split("-")[1] != before.version.split("-")[1]
    np.testing.assert_allclose(engine.embed(TEXTS), small, atol=1e-6)
    engine.save(tmp_path / "saved")
    np.testing.assert_allclose(embeddings(tmp_path / "saved"), small, atol=1e-6)


@pytest.mark.usefixtures("faster")
def test_onnx_is_written_and_loads(folder: Path, tmp_path: Path, corpora: list[Corpus]) -> None:
    out = tmp_path / "out"
    report = compress(folder, out, corpora, in_onnx=True)
    assert report["agreement"] == 1.0 and report["cosine_min"] > 0.99999
    shutil.move(out / "packed.onnx", tmp_path / "kept")
    with pytest.raises(ModelCorrupt, match=r"packed\.onnx can't be read"):
        Encoder(out, CPU, torch.float32)
    shutil.move(tmp_path / "kept", out / "packed.onnx")
    np.testing.assert_allclose(embeddings(out), embeddings(folder), atol=1e-5)


def test_below_the_agreement_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    """Hundreds of near labels: no layer can be in 8 bits without one of the texts changing its best."""
    letters = [f"{a} {b} {c}" for a in ("where", "is", "my", "lost") for b in ("card", "mug", "blue", "order")
               for c in ("i", "it", "week", "here", "last")]  # fmt: skip
    texts = [f"{one} {other}" for one in letters for other in ("refund", "please", "been", "have")]
    with pytest.raises(
        ModelError, match=r"out was not written: its best label is the original's for 9.* below the 100\.00% asked"
    ):
        compress(folder, tmp_path / "out", [Corpus("named", texts, letters)], in_int8=True, min_agreement=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_form_that_is_slower_is_not_written(
    folder: Path, tmp_path: Path, corpora: list[Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.compress._rates", lambda encoders, corpora: [100.0, 99.0])
    with pytest.raises(ModelError, match=r"out was not written: onnx makes 99\.0 texts/s here, the original 100\.0"):
        compress(folder, tmp_path / "out", corpora, in_onnx=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing to compress"),
        ({"in_int8": True, "in_onnx": True}, "ask for one"),
        ({"in_int8": True, "out": "there"}, "there is there already"),
    ],
)
def test_wrong_requests_are_refused(folder: Path, tmp_path: Path, asked: dict[str, object], said: str) -> None:
    (tmp_path / "there").mkdir()
    out = tmp_path / str(asked.pop("out", "out"))
    with pytest.raises(ModelError, match=said):
        compress(folder, out, [], **asked)  # type: ignore[arg-type]


def test_command_trims_the_vocabulary_and_prints_one_object(base_folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "chats.csv"
    texts.write_text(
        "text\n" + "\n".join(["I lost my card", "Where is my refund?", "手机很好", "it is too late now"] * 5)
    )
    command = [sys.executable, "-m", "streaming.cli", "models", "compress", str(base_folder), "--texts", str(texts)]
    done = subprocess.run([*command, "--out", str(tmp_path / "out"), "--vocabulary", "zh,en", "--json"],
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["agreement"] == 1.0 and report["mb"] < 0.4 * report["mb_before"]
    refused = subprocess.run([*command, "--out", str(tmp_path / "no"), "--vocabulary", "ko"],
                             capture_output=True, text=True, timeout=200)  # fmt: skip
    assert refused.returncode == 1 and "no was not written" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "no").exists()
    wrong = subprocess.run([*command, "--out", str(tmp_path / "no")], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
