"""A trimmed model: the kept pieces' texts are read as before, all others in what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model.errors import ModelCorrupt, ModelError, ModelUnavailable
from model.files import DERIVED, calibrated_checksum, is_intact, weights_checksum
from model.tokens import TokenReader
from model.vocabulary import trim

GONE = "한국"  # before the control tokens, so that their ids move
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = {
    "▁": -4.0, "▁the": -3.0, "▁Bahnhof": -9.0, "▁über": -9.5, "▁order": -6.0, "er": -5.0, "ord": -7.0, "▁ord": -8.0,
    "订": -9.0, "订单": -8.0, "▁订单": -8.5, "заказ": -9.0, "注文の": -9.0, "T恤": -9.0, "!!": -8.0, "42": -8.0,
    **dict.fromkeys("abcdefghijklmnopqrstuvwxyzBüэзаказ한国单恤T!42の注文", -10.0),
    "우산": -20.0,  # the lowest score, by which Unigram weighs what it doesn't know
}  # fmt: skip
ROWS = 1 + len(SPECIAL) + len(PIECES) + 3  # and some that no piece has


def make(folder: Path, kind: str = "Unigram") -> Path:
    folder.mkdir()
    tokenizer: Tokenizer
    if kind == "Unigram":
        scores = [(GONE, -9.0), *((token, 0.0) for token in SPECIAL), *PIECES.items()]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=4))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    elif kind == "WordPiece":
        words = [
            f"##{GONE}",
            *SPECIAL,
            *(piece[1:] if piece[0] == "▁" and piece != "▁" else f"##{piece}" for piece in PIECES),
        ]
        tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate([*SPECIAL, "a"])}, []))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "vocab_size": ROWS, "pad_token_id": 2, "hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        "embeddings.word_embeddings.weight": torch.arange(ROWS * 4.0).view(ROWS, 4),
        "embeddings.position_embeddings.weight": torch.rand(9, 4),
        "cls.predictions.bias": torch.arange(float(ROWS)),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def kept_pieces(folder: Path) -> set[str]:
    return set(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab())


def read(folder: Path, texts: list[str]) -> list[list[str]]:
    reader = TokenReader(folder, 64)
    return [[reader.tokenizer.id_to_token(int(id_)) or "" for id_ in row] for row in reader.read(texts)]


def test_languages_choose_the_pieces(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    report = trim(whole, tmp_path / "both")
    kept = kept_pieces(tmp_path / "both")
    assert {"▁the", "▁order", "er", "订单", "▁订单", "T恤", "!!", "42", *SPECIAL, "우산"} <= kept
    assert not {"▁Bahnhof", "▁über", "заказ", "注文の", "한국", "한"} & kept
    assert {"з", "ü", "の", "国"} <= kept  # letters of alphabets, and the language's characters
    assert report.pieces == len(kept) < report.pieces_before == 1 + len(SPECIAL) + len(PIECES)
    trim(whole, tmp_path / "ja", ["ja"])
    assert {"注文の", "订单", "国", "の"} <= kept_pieces(tmp_path / "ja")
    assert not {"▁Bahnhof", "заказ"} & kept_pieces(tmp_path / "ja")
    trim(whole, tmp_path / "de", ["de", "ru"])
    assert {"▁Bahnhof", "▁über", "▁the", "заказ"} <= kept_pieces(tmp_path / "de")
    assert not {"한국", "한"} & kept_pieces(tmp_path / "de")


def test_texts_add_their_pieces(tmp_path: Path) -> None:
    report = trim(
        make(tmp_path / "whole"), tmp_path / "out", texts=iter(["заказ the", "Bahnhof", "заказ"]), min_count=2
    )
    kept = kept_pieces(tmp_path / "out")
    assert "заказ" in kept
    assert "▁Bahnhof" not in kept
    assert (report.texts, report.texts_same) == (3, 2)


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece"])
def test_rows_follow_their_pieces(kind: str, tmp_path: Path) -> None:
    whole, out = make(tmp_path / "whole", kind), tmp_path / "out"
    trim(whole, out)
    before, after = (Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (whole, out))
    assert 0 < len(after) < len(before)
    assert sorted(after.values()) == list(range(len(after)))
    weights = load_file(out / "model.safetensors")
    for piece, id_ in after.items():
        assert weights["embeddings.word_embeddings.weight"][id_].tolist() == [before[piece] * 4 + n for n in range(4)]
        assert weights["cls.predictions.bias"][id_] == before[piece]
    assert weights["embeddings.position_embeddings.weight"].shape == (9, 4)
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"]) == (len(after), after["<pad>"])
    assert after["<pad>"] < before["<pad>"] == 2
    assert config["hidden_size"] == 4
    assert read(out, ["the order"])[0][0] == "<s>"


@pytest.fixture(scope="module", params=["Unigram", "WordPiece"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    trim(make(folder / "whole", request.param), folder / "out")
    return folder / "whole", folder / "out"


@given(texts=st.lists(st.text(alphabet="theord Bahnfü订单заказT恤!42한국€", max_size=20), min_size=1))
def test_texts_of_kept_pieces_are_read_as_before(pair: tuple[Path, Path], texts: list[str]) -> None:
    whole, out = pair
    kept = kept_pieces(out)
    for before, after in zip(read(whole, texts), read(out, texts), strict=True):
        if set(before) <= kept:
            assert after == before
        else:
            assert len(after) > 2


def test_outside_texts_fall_back_to_letters(tmp_path: Path) -> None:
    trim(make(tmp_path / "whole"), tmp_path / "out")
    assert read(tmp_path / "out", ["заказ"])[0] == ["<s>", "▁", *"заказ", "</s>"]


def test_the_folder_is_whole_and_keeps_its_calibration(tmp_path: Path) -> None:
    whole, out = make(tmp_path / "whole"), tmp_path / "deep" / "out"
    (whole / "1_Pooling").mkdir()
    (whole / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    trim(whole, out)
    assert is_intact(out)
    assert (out / "1_Pooling" / "config.json").is_file()
    assert calibrated_checksum(out) == weights_checksum(whole) != weights_checksum(out)
    trim(out, tmp_path / "again")
    assert calibrated_checksum(tmp_path / "again") == weights_checksum(whole)
    assert [file.name for file in out.parent.iterdir()] == ["out"]  # nothing temporary
    record = json.loads((out / DERIVED).read_text())
    (out / DERIVED).write_text(json.dumps(record | {"weights": "of weights that were fine-tuned since"}))
    assert calibrated_checksum(out) == weights_checksum(out)
    (out / DERIVED).write_text("[]")
    with pytest.raises(ModelCorrupt, match=r"derived_from\.json can't be read"):
        calibrated_checksum(out)


def test_faults_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    with pytest.raises(ModelError, match=r"'klingon'.*zh"):
        trim(whole, tmp_path / "out", ["klingon"])
    with pytest.raises(ModelError, match="there already"):
        trim(whole, whole)
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json is a BPE tokenizer.*Unigram and WordPiece"):
        trim(make(tmp_path / "bpe", "BPE"), tmp_path / "out")
    (whole / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors can't be read"):
        trim(whole, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bpe", "whole"]
