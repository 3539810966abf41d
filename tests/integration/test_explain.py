"""Explanations: what words get adds up, agrees with what leaving a word out does, and leaves the engine as it was."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import random
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from model import Engine, explain
from model.encoder import Encoder
from model.errors import ModelError
from model.explain import TOLERANCE, Explanation
from model.heads import Head
from model.taxonomy import Facet
from streaming.cli.explain import render
from trainer.labelled import SHIPPED

from .test_encoder_families import FAMILIES, make

DATA = Path(__file__).parents[3] / "shared" / "data"
CHINESE = "这个手机的电池很好，通话质量也不错，非常满意"
# Real texts of a length that keeps the tests quick; long ones are in a test of their own.
SHORT = 32


def _column(file: Path, column: str, count: int) -> list[str]:
    """Texts of a (gzipped) CSV file, the same ones in every run; none where it is not there."""
    if not file.is_file():
        return []
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        texts = [row[column] for row in csv.DictReader(lines) if 4 < len(row[column]) < SHORT]
    return random.Random(6).sample(texts, count)


@dataclass(frozen=True)
class Case:
    text: str
    explanation: Explanation


@pytest.fixture(scope="module")
def cases(engine: Engine) -> list[Case]:
    """Public texts of both languages where they are, else the shipped ones, each for its strongest label of a facet."""
    english = _column(DATA / "banking77_test.csv.gz", "text", 50)
    chinese = _column(DATA / "shop_reviews_zh.csv.gz", "review", 50)
    texts = [
        *((text, "banking_needs") for text in english),
        *((text, ("interests", "sentiment")[place % 2]) for place, text in enumerate(chinese)),
    ] or [(text, "needs") for text in _column(SHIPPED / "shop_chats_labelled.csv", "text", 100)]
    scores = engine.score([text for text, _ in texts])
    strongest = [engine.labels[facet][int(scores[facet][place].argmax())] for place, (_, facet) in enumerate(texts)]
    return [
        Case(text, engine.explain(text, facet, label)) for (text, facet), label in zip(texts, strongest, strict=True)
    ]


def _bare(word: Explanation) -> list[str]:
    return [word.text for word in word.words]


def test_contributions_add_up_in_both_languages(cases: list[Case]) -> None:
    """To rounding with what is spread, and within 5 % before that."""
    assert len(cases) == 100
    for case in cases:
        found = case.explanation
        assert sum(word.contribution for word in found.words) == pytest.approx(found.difference, rel=1e-4, abs=1e-4)
        assert abs(found.residual) <= TOLERANCE * max(abs(found.difference), 1)
    assert np.mean([case.explanation.steps == 8 for case in cases]) > 0.5


def test_scores_are_those_of_the_engine(engine: Engine, cases: list[Case]) -> None:
    scores = engine.score([case.text for case in cases])
    for place, case in enumerate(cases):
        found = case.explanation
        engines = scores[found.facet][place, engine.labels[found.facet].index(found.label)]
        assert found.probability == pytest.approx(engines, abs=1e-4)
        assert found.model == engine.version


def test_every_character_is_in_one_word_in_order(cases: list[Case]) -> None:
    for case in cases:
        assert "".join(_bare(case.explanation)) == "".join(case.text.split())


def test_leaving_out_the_first_word_costs_more_than_another(engine: Engine, cases: list[Case]) -> None:
    """Faithfulness by deletion: the word with the largest contribution beside words drawn at random."""
    draw = random.Random(1)
    asked: list[tuple[Case, str]] = []
    for case in cases[::2]:
        words = case.explanation.words
        if len(words) < 4:
            continue
        top = max(range(len(words)), key=lambda place: words[place].contribution)
        others = draw.sample([place for place in range(len(words)) if place != top], 2)
        asked += [(case, _without(case, place)) for place in (top, *others)]
    scores = engine.score([text for _, text in asked])
    drops = []
    for place, (case, _) in enumerate(asked):
        found = case.explanation
        left = scores[found.facet][place, engine.labels[found.facet].index(found.label)]
        drops.append(found.score - np.log(left / (1 - left)))
    top, *others = np.array(drops).reshape(-1, 3).T
    assert top.mean() > 2 * np.mean(others)
    assert (top > np.mean(others, axis=0)).mean() > 0.7


def _without(case: Case, place: int) -> str:
    """The case's text without one of its words."""
    start = 0
    for before in case.explanation.words[:place]:
        start = case.text.index(before.text, start) + len(before.text)
    word = case.explanation.words[place].text
    start = case.text.index(word, start)
    return case.text[:start] + case.text[start + len(word) :]


def test_eight_steps_rank_words_like_a_hundred(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 8 steps alone, whatever they leave, beside 100 equal ones."""
    asked = [
        ("Where is my order? It should be here.", "needs", "delivery_status"),
        (CHINESE, "sentiment", "positive"),
    ]
    monkeypatch.setattr(explain, "MOST_STEPS", 8)
    eight = [engine.explain(*each) for each in asked]
    monkeypatch.setattr(explain, "INTERVALS", np.linspace(0, 1, 101))
    hundred = [engine.explain(*each) for each in asked]
    for few, many in zip(eight, hundred, strict=True):
        assert (few.steps, many.steps) == (8, 100)
        ranks = [np.argsort(np.argsort([word.contribution for word in found.words])) for found in (few, many)]
        assert np.corrcoef(ranks)[0, 1] > 0.95


def test_words_and_signs(engine: Engine) -> None:
    found = engine.explain("It isn't what I ordered, please refund me!", "needs", "return_refund")
    assert _bare(found) == ["It", "isn't", "what", "I", "ordered", ",", "please", "refund", "me", "!"]
    assert max(found.words, key=lambda word: word.contribution).text == "refund"
    against = {word.text: word.contribution for word in engine.explain("good phone, bad battery", "sentiment",
                                                                       "positive").words}  # fmt: skip
    assert against["good"] > 0 > against["bad"]


@pytest.mark.skipif(importlib.util.find_spec("jieba") is None, reason="jieba is not installed")
def test_chinese_words_are_those_of_jieba(engine: Engine) -> None:
    words = _bare(engine.explain(CHINESE + " iPhone很好", "interests", "phones"))
    assert words[:4] == ["这个", "手机", "的", "电池"]
    assert words[-3:] == ["iPhone", "很", "好"]


def test_chinese_words_without_jieba_are_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "_jieba", lambda: None)
    words = _bare(engine.explain(CHINESE, "interests", "phones"))
    assert "".join(words) == CHINESE
    assert 8 < len(words) <= len(engine._encoder.reader.tokenizer.encode(CHINESE).ids)


@pytest.mark.parametrize(
    "text", ["", "   ", "</s><mask>", "😀👍🏽 ok", "a\u200bb \x00", "\ud800 cut", "ALL CAPITALS İ"]
)
def test_odd_texts(engine: Engine, text: str) -> None:
    found = engine.explain(text, "sentiment", "positive")
    assert sum(word.contribution for word in found.words) == pytest.approx(found.difference, abs=1e-3)
    if not text.strip():
        assert (found.words, found.difference) == ((), pytest.approx(0, abs=1e-4))


def test_of_a_long_text_the_words_that_are_read(engine: Engine) -> None:
    found = engine.explain("late parcel " * 2000, "needs", "delivery_status")
    assert 100 < len(found.words) < 256
    assert sum(word.contribution for word in found.words) == pytest.approx(found.difference, rel=1e-3)


def test_unknown_names(engine: Engine) -> None:
    with pytest.raises(ModelError, match=r"facet 'moods' is not of this model; it has .*sentiment"):
        engine.explain("ok", "moods", "positive")
    with pytest.raises(ModelError, match=r"label 'great' is not of facet 'sentiment', which has positive, neutral"):
        engine.explain("ok", "sentiment", "great")


def test_nothing_stays(engine: Engine) -> None:
    """The weights that serve keep their bytes and no gradient, and answers stay the same."""
    weights = engine._encoder.weights
    assert weights is not None
    tensors = [weights.positions, *(tensor for layer in weights.layers for pair in vars(layer).values()
                                    for tensor in pair)]  # fmt: skip
    before = [tensor.clone() for tensor in tensors]
    embedded = engine._encoder.embed([CHINESE])
    engine.explain(CHINESE, "interests", "phones")
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in tensors)
    assert all(torch.equal(*pair) for pair in zip(before, tensors, strict=True))
    assert (engine._encoder.embed([CHINESE]) == embedded).all()
    with torch.inference_mode():  # as a caller may be in
        engine.explain("ok", "sentiment", "positive")


def test_time(engine: Engine) -> None:
    """A person waits for it."""
    engine.explain(CHINESE, "interests", "phones")  # jieba reads its dictionary
    start = time.process_time()
    engine.explain(CHINESE, "interests", "phones")
    assert time.process_time() - start < 5


# --- other models and heads


def random_head(kind: str, dim: int, background: bool = False, phrases: int = 1) -> Head:
    numbers = np.random.default_rng(3)
    rows_of = (phrases,) * 3 + (1,) * background
    return Head(
        Facet(name="f", kind=kind, sources=("chat",), half_life_ms=1, threshold=0.5, top_k=1, background=background,
              labels=("a", "b", "c")),
        numbers.normal(size=(sum(rows_of), dim)).astype(np.float32),
        rows_of,
        numbers.normal(size=len(rows_of)).astype(np.float32),
        slope=3.0, softness=0.2, competition=0.6 if kind == "multi" else 0.0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("phrases", [1, 4])
def test_log_odds_are_those_of_the_probabilities(kind: str, background: bool, phrases: int) -> None:
    head = random_head(kind, 16, background, phrases)
    features = np.random.default_rng(4).normal(size=(9, 16)).astype(np.float32)
    probabilities = head.probabilities(features)
    for index in range(3):
        odds = explain.log_odds(head, index, torch.from_numpy(features)).numpy()
        assert 1 / (1 + np.exp(-odds)) == pytest.approx(probabilities[:, index], abs=1e-5)


@pytest.mark.parametrize(
    ("family", "long_texts"), [("bert", "windows"), ("roberta", "head+tail"), ("deberta-v2", "head")]
)
def test_other_encoders_and_long_texts(family: str, long_texts: str, tmp_path: Path) -> None:
    make(tmp_path, FAMILIES[family]())
    encoder = Encoder(tmp_path, torch.device("cpu"), torch.float32, long_texts)
    head = random_head("single", encoder.dim)
    center = np.zeros(encoder.dim, np.float32)
    for text in ("where is my blue mug", "i lost my card last week " * 45):
        found = explain.explain(encoder, head, center, text, "b", "v1")
        odds = explain.log_odds(head, 1, torch.from_numpy(encoder.embed([text])))
        assert found.score == pytest.approx(float(odds), abs=1e-3)
        assert sum(word.contribution for word in found.words) == pytest.approx(found.difference, abs=1e-3)
        read = "".join(_bare(found))
        whole = text.replace(" ", "")
        assert whole.startswith(read) if long_texts == "head" else len(read) <= len(whole)
        if len(text) < 50 or long_texts == "windows":
            assert read == whole


# --- the command


def test_the_command_shows_words_and_bars(engine: Engine) -> None:
    lines = [click.unstyle(line) for line in render(engine.explain("good phone, bad battery", "sentiment", "positive"))]
    assert lines[0].startswith("sentiment positive  probability 0.")
    bars = {line.split()[0]: line for line in lines if "│" in line}
    assert list(bars) == ["good", "phone", ",", "bad", "battery"]
    assert "│█" in bars["good"] and "█│" in bars["bad"]
    assert len({line.index("│") for line in bars.values()}) == 1
