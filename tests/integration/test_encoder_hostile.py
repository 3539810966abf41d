"""Whatever one customer writes, no other text's scores change, and nobody waits for it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model import Engine
from model.heads import features
from model.stacked import StackedHeads

NEIGHBOURS = ["Where is my order?", "ok", "这个手机的电池很好，通话质量也不错", "WHITE HANGING HEART T-LIGHT HOLDER"]
SPECIAL = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", "[SEP]", "[CLS]", "query: "]
STRANGE = [
    "\x00",
    "\x1b[2J",
    "\u200d",
    "\u200b",
    "\ufeff",
    "\u202e",
    "\ud83d",
    "😡",
    "👩‍👩‍👧‍👦",
    "e\u0301",
    "\u0301",
    "ﷺ",
    "▁",
    "##",
    "�",
]
MEGABYTES = {
    "word": "a" * 2**20,
    "Chinese": "好" * 2**20,
    "spaces": " " * 2**20,
    "joiners": "\u200d" * 2**20,
    "emoji": "😡" * 2**20,
    "accents": "\u0301" * 2**20,
    "ligatures": "ﷺ" * 2**20,
    "control tokens": "</s>" * 2**18,
}

hostile = st.one_of(
    st.lists(st.sampled_from([*SPECIAL, *STRANGE, "refund", " "]), max_size=30).map("".join),
    st.text(max_size=200),
    st.builds(lambda piece, times: piece * times, st.sampled_from([*SPECIAL, *STRANGE, "a", "好"]),
              st.integers(1, 3000)),
)  # fmt: skip


def scores(engine: Engine, texts: list[str]) -> np.ndarray:
    """Past the caches: all facets' probabilities."""
    return StackedHeads(engine.heads).probabilities(features(engine._encoder.embed(texts), engine.center))


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(hostile, min_size=1, max_size=3))
@example(texts=["</s>" * 100, "\x00" * 50, "\u200d" * 300, "😡" * 300])
@example(texts=[MEGABYTES["word"]])
def test_no_other_texts_scores_change(engine: Engine, alone: np.ndarray, texts: list[str]) -> None:
    mixed = scores(engine, [*NEIGHBOURS[:2], *texts, *NEIGHBOURS[2:]])
    assert np.isfinite(mixed).all()
    assert np.delete(mixed, slice(2, 2 + len(texts)), axis=0) == pytest.approx(alone, abs=1e-5)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> np.ndarray:
    return np.vstack([scores(engine, [text]) for text in NEIGHBOURS])


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_is_read_at_once(engine: Engine, name: str) -> None:
    """Unbounded, the tokenizer took 1 to 39 s for these."""
    started = time.perf_counter()
    tokens = engine._encoder.tokenize([MEGABYTES[name]])
    assert time.perf_counter() - started < 0.5
    assert len(tokens.ids) <= 256
