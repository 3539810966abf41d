"""The CUDA path on a device that is there: captured graphs and FlashAttention beside the CPU's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import explain
from model.cuda import CudaEncoder
from model.encoder import Embeddings, Encoder
from tests.integration.test_encoder_families import FAMILIES, TEXTS, WORDS, make
from tests.integration.test_explain import random_head

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("bert")
    make(made, FAMILIES["bert"]())
    return made


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CudaEncoder:
    found = CudaEncoder(folder, CUDA, torch.bfloat16)
    assert found._windows is not None
    return found


def many_texts(count: int) -> list[str]:
    draw = np.random.default_rng(1)
    return [" ".join(draw.choice(WORDS, draw.integers(0, 60))) for _ in range(count)]


def cosines(a: Embeddings, b: Embeddings) -> Embeddings:
    product: Embeddings = (a * b).sum(axis=1)
    return product


@pytest.mark.parametrize("count", [1, 64, 10_000])
def test_answers_are_the_cpus_to_rounding(count: int, encoder: CudaEncoder, folder: Path) -> None:
    texts = (TEXTS + many_texts(count))[:count]
    there = encoder.embed(texts)
    assert there.shape == (count, encoder.dim)
    assert np.linalg.norm(there, axis=1) == pytest.approx(1, abs=1e-4)
    here = Encoder(folder, torch.device("cpu"), torch.float32).embed(texts)
    assert cosines(there, here).min() > 0.995  # random weights, which magnify rounding more than trained ones


def test_neighbours_change_nothing_but_rounding(encoder: CudaEncoder) -> None:
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert cosines(encoder.embed(TEXTS + many_texts(3000))[: len(TEXTS)], alone).min() > 0.999


def test_memory_is_flat(encoder: CudaEncoder) -> None:
    texts = many_texts(5000)
    encoder.embed(texts)
    before = torch.cuda.memory_reserved()
    for _ in range(20):
        encoder.embed(texts)
    assert torch.cuda.memory_reserved() == before


def test_float32_and_other_families_run_plainly(folder: Path, tmp_path: Path) -> None:
    make(tmp_path, FAMILIES["deberta-v2"]())
    for plain in (CudaEncoder(folder, CUDA, torch.float32), CudaEncoder(tmp_path, CUDA, torch.bfloat16)):
        assert plain._windows is None
        assert plain.embed(TEXTS).shape == (len(TEXTS), plain.dim)


def test_explanations(encoder: CudaEncoder) -> None:
    found = explain.explain(encoder, random_head("single", encoder.dim), np.zeros(encoder.dim, np.float32),
                            "where is my blue mug", "b", "v1")  # fmt: skip
    assert [word.text for word in found.words] == ["where", "is", "my", "blue", "mug"]
    assert sum(word.contribution for word in found.words) == pytest.approx(found.difference, abs=1e-3)
