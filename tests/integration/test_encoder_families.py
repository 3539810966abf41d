"""Every family of encoders gives transformers' own answers: small randomly initialised models with a tiny tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model.encoder import Encoder
from model.engine import Engine
from model.errors import ModelCorrupt, ModelUnavailable
from model.tokens import LongTexts

WORDS = [
    *("where", "is", "my", "order", "it", "should", "have", "been", "here", "last", "week", "i", "lost", "card", "mug"),
    *("blue", "refund", "please"),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
TEXTS = [
    "where is my order",
    "i lost my card",
    "",
    "refund please refund please",
    "mug",
    "it should have been here last week " * 3,
    "blue mug blue card",
]
SMALL = {"vocab_size": len(WORDS) + len(SPECIAL), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def make_tokenizer(folder: Path, template: str | None) -> None:
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))


def make(folder: Path, config: Any, family: Any = None, template: str | None = "<s> $A </s>") -> Any:
    """A saved model with random weights, biases and norms too, so that every weight matters."""
    torch.manual_seed(7)
    model = (family or transformers.AutoModel.from_config)(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.eval().save_pretrained(folder)
    make_tokenizer(folder, template)
    return model


def ids_of(text: str, start: list[int], end: list[int]) -> list[int]:
    return [*start, *(len(SPECIAL) + WORDS.index(word) for word in text.split()), *end]


def reference(
    model: Any, rows: list[list[int]], pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> NDArray[np.float32]:
    """transformers' forward over padded texts, pooled and normalised."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled: NDArray[np.float32] = torch.nn.functional.normalize(pool(states, mask[..., None]), dim=1).numpy()
    return pooled


def mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (states * mask).sum(1) / mask.sum(1)


def last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states)), mask.sum(1)[:, 0] - 1]


def first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def largest(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask == 0, -torch.inf).amax(1)


def encoder_of(folder: Path) -> Encoder:
    return Encoder(folder, torch.device("cpu"), torch.float32)


FAMILIES = {
    "bert": lambda: transformers.BertConfig(**SMALL, **BERT),
    "minilm": lambda: transformers.BertConfig(
        **SMALL, **(BERT | {"num_hidden_layers": 6, "num_attention_heads": 8}), type_vocab_size=2
    ),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, **BERT, type_vocab_size=1, max_position_embeddings=130),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(
        **SMALL, **BERT, type_vocab_size=1, max_position_embeddings=130
    ),
    "bert with relu": lambda: transformers.BertConfig(**SMALL, **BERT, hidden_act="relu"),
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **SMALL, **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_with_mean_pooling(name: str, tmp_path: Path) -> None:
    model = make(tmp_path, FAMILIES[name]())
    encoder = encoder_of(tmp_path)
    assert (encoder.weights is not None) == (name in ("bert", "minilm", "roberta", "xlm-roberta"))
    rows = [ids_of(text, [1], [2]) for text in TEXTS]
    assert encoder.embed(TEXTS) == pytest.approx(reference(model, rows, mean), abs=1e-5)


def test_gpt2_reads_the_last_token(tmp_path: Path) -> None:
    config = transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = make(tmp_path, config, template=None)
    encoder = encoder_of(tmp_path)
    assert encoder.pooling == "last"
    rows = [ids_of(text, [], []) or [0] for text in TEXTS]
    assert encoder.embed(TEXTS) == pytest.approx(reference(model, rows, last), abs=1e-5)
    assert len(next(iter(encoder.tokenize(["mug " * 200])))) == 62  # of 64 positions
    assert np.isfinite(encoder.embed(["mug " * 200])).all()


@pytest.mark.parametrize("family", ["T5EncoderModel", "T5Model"])
def test_t5_reads_with_its_encoder(family: str, tmp_path: Path) -> None:
    config = transformers.T5Config(
        **SMALL, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = make(tmp_path, config, getattr(transformers, family), template="$A </s>")
    encoder = encoder_of(tmp_path)
    rows = [ids_of(text, [], [2]) for text in TEXTS]
    assert encoder.embed(TEXTS) == pytest.approx(reference(model.get_encoder(), rows, mean), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}, first),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, last),
        ({"pooling_mode": "max"}, largest),
    ],
)
@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_pooling_is_the_folders_own(
    name: str, config: dict[str, Any], pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    model = make(tmp_path, FAMILIES[name]())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    rows = [ids_of(text, [1], [2]) for text in TEXTS]
    assert encoder_of(tmp_path).embed(TEXTS) == pytest.approx(reference(model, rows, pool), abs=1e-5)


def test_what_a_folder_asks_and_nothing_computes_is_named(tmp_path: Path) -> None:
    make(tmp_path, FAMILIES["bert"]())
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": "weightedmean"}))
    with pytest.raises(ModelUnavailable, match=r"1_Pooling/config\.json: pooling weightedmean.*mean, cls"):
        encoder_of(tmp_path)
    pooling.unlink()
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2"}]))
    with pytest.raises(ModelUnavailable, match=r"modules\.json: module 'Dense'"):
        encoder_of(tmp_path)


def test_a_model_without_its_weights_is_named(tmp_path: Path) -> None:
    make(tmp_path, FAMILIES["deberta-v2"]())
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelCorrupt, match=r"no weight encoder\.layer\.1\.output\.dense\.weight"):
        encoder_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelCorrupt, match="can't be read"):
        encoder_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing-like-it"}')
    with pytest.raises(ModelUnavailable, match=r"config\.json.*nothing-like-it"):
        encoder_of(tmp_path)


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_states_from_embeddings_are_those_from_ids_and_have_gradients(name: str, tmp_path: Path) -> None:
    make(tmp_path, FAMILIES[name]())
    encoder = encoder_of(tmp_path)
    tokens = encoder.tokenize(TEXTS)
    lengths = tokens.lengths.tolist()
    ids = torch.from_numpy(tokens.ids)
    x = torch.nn.functional.embedding(ids, encoder.words).requires_grad_()
    states = encoder.forward_from_embeddings(x, lengths)
    with torch.inference_mode():
        assert states.detach() == pytest.approx(encoder.hidden(ids, lengths).numpy(), abs=1e-6)
    (gradient,) = torch.autograd.grad(states[0].sum(), x)
    assert gradient[: lengths[0]].abs().min() > 0
    assert (gradient[lengths[0] :] == 0).all()  # texts know nothing of each other


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_many_passes_change_nothing(name: str, tmp_path: Path) -> None:
    make(tmp_path, FAMILIES[name]())
    encoder = encoder_of(tmp_path)
    texts = [" ".join(WORDS[n % len(WORDS)] for n in range(start, start + start % 60)) for start in range(400)]
    assert encoder.tokenize(texts).lengths.sum() > 2 * encoder.tokens_per_pass
    alone = np.vstack([encoder.embed([text]) for text in texts[::40]])
    assert encoder.embed(texts)[::40] == pytest.approx(alone, abs=1e-5)


def test_windows_are_joined_by_their_tokens(tmp_path: Path) -> None:
    make(tmp_path, transformers.BertConfig(**SMALL, **BERT, max_position_embeddings=18))
    encoder = Encoder(tmp_path, torch.device("cpu"), torch.float32, long_texts="windows")
    words = [WORDS[n % len(WORDS)] for n in range(40)]  # 16 a window, of which 2 repeat
    windows = [words[:16], words[14:30], words[28:]]
    each = encoder.embed([" ".join(window) for window in windows])
    mean = (each * np.array([[18], [18], [14]])).sum(axis=0)
    found = encoder.embed(["mug", " ".join(words), "card"])
    assert found[1] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert found[[0, 2]] == pytest.approx(encoder.embed(["mug", "card"]), abs=1e-5)
    ends = Encoder(tmp_path, torch.device("cpu"), torch.float32, long_texts="head+tail")
    assert ends.embed([" ".join(words)]) == pytest.approx(ends.embed([" ".join(words[:8] + words[-8:])]), abs=1e-5)


def test_how_long_texts_are_read_is_part_of_the_version(tmp_path: Path) -> None:
    make(tmp_path / "bert", FAMILIES["bert"]())

    def load(long_texts: LongTexts) -> Engine:
        return Engine.load(tmp_path / "bert", device="cpu", packs=["common"], dtype="float32", long_texts=long_texts)

    assert len({load("head").version, load("head+tail").version, load("windows").version}) == 3


def test_engine_loads_them_by_folder(tmp_path: Path) -> None:
    config = transformers.GPT2Config(**SMALL, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    make(tmp_path / "gpt2", config, template=None)
    engine = Engine.load(tmp_path / "gpt2", device="cpu", packs=["common"], dtype="float32")
    assert engine.embed(TEXTS).shape == (len(TEXTS), 32)
    (tmp_path / "gpt2" / "1_Pooling").mkdir()
    (tmp_path / "gpt2" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    engine.save(tmp_path / "saved")
    saved = Engine.load(tmp_path / "saved", device="cpu", packs=["common"], dtype="float32")
    pooled = Engine.load(tmp_path / "gpt2", device="cpu", packs=["common"], dtype="float32")
    assert saved.embed(TEXTS) == pytest.approx(pooled.embed(TEXTS), abs=1e-6)
