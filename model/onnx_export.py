"""ONNX graphs of an encoder of BERT's family, built from its weights with ONNX Runtime's fused operators.

Two forms, equal to `model.packed` to rounding:

- `packed_graph`: the layers alone, over packed tokens. Only attention sees padding: its rows are gathered into
  [texts, longest] and back, so every matrix product and norm costs what the tokens cost.
- `padded_graph`: the usual [texts, longest] graph from token ids, as other runtimes of ONNX models expect it.

Built by hand because tracing is no way here: `torch.onnx.export(dynamo=False)` of transformers 5 gives a graph that
runs and answers wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import packed
from model.errors import ModelCorrupt, ModelUnavailable

PACKED_FILE = "packed.onnx"
_FUSED = "com.microsoft"  # the domain of ONNX Runtime's own operators


class _Graph:
    """Collects nodes and weights; each method returns the name of its output."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, value: torch.Tensor | NDArray[Any]) -> str:
        array = value.numpy() if isinstance(value, torch.Tensor) else value
        self._weights.append(self._numpy_helper.from_array(np.ascontiguousarray(array), f"w{len(self._weights)}"))
        return str(self._weights[-1].name)

    def node(self, kind: str, *inputs: str, domain: str = "", out: str = "", **attributes: Any) -> str:
        out = out or f"n{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(kind, list(inputs), [out], domain=domain, **attributes))
        return out

    def split(self, x: str, parts: int) -> list[str]:
        """Along the last axis."""
        outs = [f"n{len(self._nodes)}.{part}" for part in range(parts)]
        self._nodes.append(self._helper.make_node("Split", [x], outs, axis=-1, num_outputs=parts))
        return outs

    def layers(self, weights: packed.Weights, x: str, attend: Callable[[str, packed.Layer], str]) -> str:
        for layer in weights.layers:
            y = self.node("MatMul", attend(x, layer), self.weight(layer.attention[0].T))
            x = self.norm(weights, y, x, layer.attention[1], layer.attention_norm)
            y = self.node("MatMul", x, self.weight(layer.up[0].T))
            y = self.node("BiasGelu", y, self.weight(layer.up[1]), domain=_FUSED)
            y = self.node("MatMul", y, self.weight(layer.down[0].T))
            x = self.norm(weights, y, x, layer.down[1], layer.norm)
        return x

    def norm(self, weights: packed.Weights, y: str, x: str, bias: torch.Tensor, norm: packed.Pair) -> str:
        """Layer norm of x + y + bias."""
        parts = [self.weight(value) for value in (*norm, bias)]
        return self.node("SkipLayerNormalization", y, x, *parts, domain=_FUSED, epsilon=weights.eps)

    def model(self, inputs: dict[str, tuple[str, list[str | int]]], output: list[str | int], last: str) -> bytes:
        """Serialised, with the output of `last` as "y"; `inputs` gives each one's element type and shape."""
        from onnx import TensorProto

        helper = self._helper
        self.node("Identity", last, out="y")
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
            self._weights,
        )
        # Opset 21 with IR 10: what ONNX Runtime has read since 1.18.
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_FUSED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="limner")
        serialised: bytes = model.SerializeToString()
        return serialised


def packed_graph(weights: packed.Weights) -> bytes:
    """The layers. Inputs: `x` float32 [tokens, dim] as `packed.embed` gives it, `to_padded` int64 [texts, longest]
    (a token's row, any row where the text has ended), `from_padded` int64 [tokens] (its place in the flattened
    [texts x longest]), `lengths` int32 [texts]. Output: float32 [tokens, dim]."""
    graph = _Graph()
    flat = graph.weight(np.array([-1, weights.dim], np.int64))

    def attend(x: str, layer: packed.Layer) -> str:
        qkv = graph.node("Gather", graph.node("MatMul", x, graph.weight(layer.qkv[0].T)), "to_padded")
        attended = graph.node("MultiHeadAttention", *graph.split(qkv, 3), graph.weight(layer.qkv[1]), "lengths",
                              domain=_FUSED, num_heads=weights.heads)  # fmt: skip
        return graph.node("Gather", graph.node("Reshape", attended, flat), "from_padded")

    last = graph.layers(weights, "x", attend)
    inputs: dict[str, tuple[str, list[str | int]]] = {
        "x": ("FLOAT", ["tokens", weights.dim]),
        "to_padded": ("INT64", ["texts", "longest"]),
        "from_padded": ("INT64", ["tokens"]),
        "lengths": ("INT32", ["texts"]),
    }
    return graph.model(inputs, ["tokens", weights.dim], last)


def padded_graph(weights: packed.Weights) -> bytes:
    """From ids to states. Inputs: `input_ids` and `attention_mask` int64 [texts, longest], padded on the right.
    Output: float32 [texts, longest, dim]."""
    graph = _Graph()
    lengths = graph.node("ReduceSum", "attention_mask", graph.weight(np.array([1], np.int64)), keepdims=0)
    lengths = graph.node("Cast", lengths, to=6)  # int32
    longest = graph.node("Shape", "input_ids", start=1, end=2)
    positions = graph.node("Slice", graph.weight(weights.positions), graph.weight(np.array([0], np.int64)), longest)
    words = graph.node("Gather", graph.weight(weights.words), "input_ids")
    x = graph.node("LayerNormalization", graph.node("Add", words, positions),
                   *[graph.weight(value) for value in weights.norm], epsilon=weights.eps)  # fmt: skip

    def attend(x: str, layer: packed.Layer) -> str:
        return graph.node("Attention", x, graph.weight(layer.qkv[0].T), graph.weight(layer.qkv[1]), lengths,
                          domain=_FUSED, num_heads=weights.heads)  # fmt: skip

    last = graph.layers(weights, x, attend)
    shape: list[str | int] = ["texts", "longest"]
    inputs = {"input_ids": ("INT64", shape), "attention_mask": ("INT64", shape)}
    return graph.model(inputs, [*shape, weights.dim], last)


def session(model: bytes | Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
        ModelUnavailable: onnxruntime is not installed.
        ModelCorrupt: the model can't be read.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModelUnavailable("this model runs in ONNX Runtime: pip install 'limner[bench]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Threads that spin between two calls take the cores from torch's, which compute what lies between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own classes, by kind of damage
        raise ModelCorrupt(f"{model if isinstance(model, Path) else 'the graph'} can't be read: {error}") from error


def packed_hidden(weights: packed.Weights, run: Any, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """`packed.hidden` by a session of `packed_graph`."""
    places = torch.cat([torch.arange(length) for length in lengths])
    x = packed.embed(weights, torch.nn.functional.embedding(ids, weights.words), places)
    lengths_, columns = np.array(lengths), np.arange(max(lengths))
    starts = np.cumsum(lengths_) - lengths_
    within = columns < lengths_[:, None]
    feeds = {
        "x": x.numpy(),
        "to_padded": np.where(within, starts[:, None] + columns, 0),
        "from_padded": np.flatnonzero(within),
        "lengths": lengths_.astype(np.int32),
    }
    return torch.from_numpy(run.run(None, feeds)[0])
