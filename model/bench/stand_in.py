"""A model of e5-small's shape with random weights, and texts as long as real ones: for machines that have neither."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model.corpora import Corpus

# Tokens with start, end and prefix, by twentieths from the shortest to the longest, cut to 128: measured with the
# base model's tokenizer on BANKING77's test texts and on every 16th of the Chinese shop reviews.
LENGTHS = {
    "banking77": (7, 11, 12, 13, 13, 14, 14, 15, 15, 16, 16, 17, 18, 18, 19, 20, 21, 23, 27, 36, 91),
    "reviews": (9, 14, 16, 18, 19, 21, 22, 24, 26, 28, 30, 32, 35, 39, 43, 48, 56, 68, 87, 126, 128),
}
_LAYERS, _DIM, _HEADS, _INNER, _POSITIONS = 12, 384, 12, 1536, 512  # e5-small's
# What a vocabulary cut to two languages' common pieces has; its size changes the cost of a pass by nothing.
_VOCABULARY = 8_000
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def write_model(folder: Path, layers: int = _LAYERS) -> None:
    """A `transformers.BertModel` whose words are "w4", "w5", ... and spaces; always the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, spread: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * spread

    weights = {
        "embeddings.word_embeddings.weight": matrix(_VOCABULARY, _DIM, 0.5),
        "embeddings.position_embeddings.weight": matrix(_POSITIONS, _DIM, 0.1),
        "embeddings.token_type_embeddings.weight": torch.zeros(2, _DIM),
    }
    sizes = {"embeddings.LayerNorm": (0, _DIM)}
    for layer in range(layers):
        for part in ("query", "key", "value"):
            sizes[f"encoder.layer.{layer}.attention.self.{part}"] = (_DIM, _DIM)
        sizes[f"encoder.layer.{layer}.attention.output.dense"] = (_DIM, _DIM)
        sizes[f"encoder.layer.{layer}.attention.output.LayerNorm"] = (0, _DIM)
        sizes[f"encoder.layer.{layer}.intermediate.dense"] = (_DIM, _INNER)
        sizes[f"encoder.layer.{layer}.output.dense"] = (_INNER, _DIM)
        sizes[f"encoder.layer.{layer}.output.LayerNorm"] = (0, _DIM)
    for name, (inputs, outputs) in sizes.items():
        # a spread that keeps the activations' size from layer to layer
        weights[f"{name}.weight"] = matrix(outputs, inputs, inputs**-0.5) if inputs else torch.ones(outputs)
        weights[f"{name}.bias"] = torch.zeros(outputs)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": _DIM,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "intermediate_size": _INNER,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": _POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {word: index for index, word in enumerate(_SPECIAL)}
    vocabulary |= {f"w{index}": index for index in range(len(_SPECIAL), _VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": _POSITIONS, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def corpora(texts: int) -> list[Corpus]:
    """That many texts of each kind of length, in the random model's words."""
    random = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"w{word}" for word in random.integers(len(_SPECIAL), _VOCABULARY, length - 2))

    return [
        Corpus(name, [text(int(np.interp(random.random() * 20, range(21), lengths))) for _ in range(texts)], [])
        for name, lengths in LENGTHS.items()
    ]
