"""Texts to tokens: framed, bounded, and text whatever they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, processors

from model.errors import ModelCorrupt, ModelUnavailable
from model.tokens import MAX_WINDOWS, LongTexts, TokenReader, Tokens

CONTROL = ["<s>", "</s>", "<pad>", "<unk>"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz<>/ 0123456789"]


def save(folder: Path, template: str | None = "<s> $A </s>") -> Path:
    """Characters as pieces, the control tokens among them, so that a text can be followed by eye."""
    pieces = [*((token, 0.0) for token in CONTROL), *((letter, -2.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens(CONTROL)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def ids(text: str) -> list[int]:
    return [len(CONTROL) + LETTERS.index(letter) for letter in text]


def rows(tokens: Tokens) -> list[list[int]]:
    return [row.tolist() for row in tokens]


def test_rows_lie_end_to_end_with_their_frames(tmp_path: Path) -> None:
    tokens = TokenReader(save(tmp_path), 16).read(["ab", "", "cde"])
    assert tokens.ids.dtype == tokens.lengths.dtype == np.int32
    assert tokens.lengths.tolist() == [4, 2, 5]
    assert rows(tokens) == [[0, *ids("ab"), 1], [0, 1], [0, *ids("cde"), 1]]
    assert rows(tokens.take(np.array([2, 0]))) == [[0, *ids("cde"), 1], [0, *ids("ab"), 1]]
    assert rows(TokenReader(tmp_path, 16).read([])) == []
    assert rows(tokens.take(np.array([], np.intp))) == []


def test_other_templates(tmp_path: Path) -> None:
    assert rows(TokenReader(save(tmp_path, "$A </s>"), 4).read(["abcdef", ""])) == [[*ids("abc"), 1], [1]]
    bare = TokenReader(save(tmp_path, None), 4)
    assert rows(bare.read(["ab", "", "c"])) == [ids("ab"), [bare.control[0]], ids("c")]  # never no token at all


def test_prefix_and_capitals(tmp_path: Path) -> None:
    reader = TokenReader(save(tmp_path), 16, prefix="q ")
    shouted, mixed = rows(reader.read(["MUG", "mug"]))
    assert shouted == mixed == [0, *ids("q mug"), 1]
    assert rows(reader.read(["Mug"]))[0][3] == 3  # a capital that is no piece: unknown, not lowered


@pytest.mark.parametrize("word", ["<s>", "</s>", "<pad>"])
def test_control_tokens_in_a_text_are_dropped_or_read_as_text(word: str, tmp_path: Path) -> None:
    reader = TokenReader(save(tmp_path), 32)
    (row,) = rows(reader.read([f"a{word}b"]))
    assert not set(row[1:-1]) & set(reader.control.tolist())
    assert row[1], row[-2] == (ids("a")[0], ids("b")[0])
    assert len(rows(reader.read([f"{word * 30}a"]))[0]) <= 32


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("head", ["0123456789"]), ("head+tail", ["01234" + "fghij"]), ("windows", ["0123456789", "9abcdefghi", "ij"])],
)
def test_long_texts_by_policy(policy: LongTexts, expected: list[str], tmp_path: Path) -> None:
    reader = TokenReader(save(tmp_path), 12, long_texts=policy)  # room for 10
    tokens = reader.read(["a", "0123456789abcdefghij", "0123456789"])
    framed = [[0, *ids(text), 1] for text in expected]
    assert rows(tokens) == [[0, *ids("a"), 1], *framed, [0, *ids("0123456789"), 1]]
    assert (tokens.rows_of is None) == (policy != "windows")
    if tokens.rows_of is not None:
        assert tokens.rows_of.tolist() == [1, 3, 1]
    endless = reader.read(["abcdefghij" * 10_000])
    assert endless.lengths.max() == 12
    assert len(endless) == (MAX_WINDOWS if policy == "windows" else 1)
    assert rows(endless)[-1][-2] == (ids("j")[0] if policy == "head+tail" else rows(endless)[-1][-2])


def test_half_a_surrogate_pair_harms_nobody(tmp_path: Path) -> None:
    assert rows(TokenReader(save(tmp_path), 16).read(["ab", "a\ud83d"]))[0] == [0, *ids("ab"), 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text() | st.lists(st.sampled_from([*CONTROL, "\u200d", "\x00", "😀", "a"])).map("".join)))
def test_whatever_is_written_rows_are_bounded_and_their_own(reader: TokenReader, texts: list[str]) -> None:
    tokens = reader.read(texts)
    assert len(tokens) == len(texts)
    assert tokens.lengths.sum() == len(tokens.ids)
    for row, text in zip(rows(tokens), texts, strict=True):
        assert 2 <= len(row) <= 16
        assert [row[0], row[-1]] == [0, 1]
        assert not set(row[1:-1]) & {0, 1, 2}
        assert row == rows(reader.read([text]))[0]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TokenReader:
    return TokenReader(save(tmp_path_factory.mktemp("tokens")), 16)


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no tokenizer\.json"):
        TokenReader(tmp_path, 16)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json can't be read"):
        TokenReader(tmp_path, 16)
    with pytest.raises(ModelUnavailable, match=r"'tail'.*head, head\+tail, windows"):
        TokenReader(save(tmp_path), 16, long_texts="tail")  # type: ignore[arg-type]
