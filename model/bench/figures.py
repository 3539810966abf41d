"""All figures of the engine's benchmark, in one flat dictionary."""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.bench import machine, peers, stand_in
from model.bench.contestant import MAX_TOKENS
from model.bench.race import Contestant, Embeddings, NotHere, Race, race
from model.corpora import order_batches, read_corpora
from model.encoder import Encoder
from model.quality import compare, tasks
from model.tokens import TokenReader

log = logging.getLogger(__name__)

RANDOM = "random"
# Of each corpus in a round. The naive loop's cost is the same for every text, and 26 of them take a second.
NAIVE_TEXTS, RACE_TEXTS = 96, 512
# Enough windows for a 99th percentile, within about a minute each on two cores.
WINDOWS = {1: 400, 16: 200, 64: 120, 256: 40}
ORDER_LINES = 60_000
SOAK_WINDOW = 64
# Memory is taken as flat between these: what allocators and caches of shapes settle to comes before.
SOAK_WARM_S = 20.0
# A peer whose best label is the reference's this often is of equal quality: what the engine promises of itself.
EQUAL_AGREEMENT = 0.995

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """`model` is a folder or "random"; `reference` the folder that naive loop, peers and answers come from, where
    `model` is a compressed form that they can't read. `pythons` gives a peer an interpreter of its own."""

    model: Path | str
    device: str = "cpu"
    texts: Sequence[Path] = ()
    limit: int | None = None
    reference: Path | None = None
    soak_s: float = 0.0
    threads: int = 0
    pythons: Mapping[str, str] | None = None


class _Bench:
    """The course with what every measurement needs: who we are, where the others read, what is right."""

    def __init__(self, options: Options, scratch: Path, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.threads = options.threads or os.cpu_count() or 1
        torch.set_num_threads(self.threads)  # of the machine's peak
        if options.model == RANDOM:
            self.folder = scratch / RANDOM
            stand_in.write_model(self.folder)
            corpora = stand_in.corpora(options.limit or RACE_TEXTS)
        else:
            self.folder = Path(options.model)
            corpora = read_corpora(options.texts, options.limit)
        original = options.reference or self.folder
        reader = Encoder(original, torch.device("cpu"), torch.float32).reader
        self.corpora = [replace(corpus, texts=[_cut(text, reader) for text in corpus.texts]) for corpus in corpora]
        self.plain = {corpus.name: corpus.texts for corpus in self.corpora}
        self.prefixed = {name: [reader.plain(text) for text in texts] for name, texts in self.plain.items()}
        self.lengths = {name: reader.read(texts).lengths.tolist() for name, texts in self.plain.items()}
        self.sizes = {name: len(texts) for name, texts in self.plain.items()}
        self.kept = peers.write_folder(original, scratch / f"{original.name}-peers", progress)
        self.ours = self.other("limner")
        progress("the reference's answers to all texts")
        with self.other("reference") as reference:
            self.answers = {name: reference.embed(texts) for name, texts in self.prefixed.items()}

            def embed(texts: Sequence[str]) -> Embeddings:
                return reference.embed([reader.plain(text) for text in texts])

            words = None if options.model == RANDOM else original
            self.tasks = tasks(self.corpora, self.answers, embed, words)

    def other(self, name: str) -> Contestant:
        python = (self.options.pythons or {}).get(name, sys.executable)
        of_ours = name.startswith("limner")
        return Contestant(name, self.folder if of_ours else self.kept, self.options.device, self.threads, python)

    def quality(self) -> dict[str, Any]:
        self.progress("our answers to all texts")
        return compare(self.tasks, self.answers, {name: self.ours.embed(texts) for name, texts in self.plain.items()})

    def beside(self, name: str, texts: int) -> tuple[Race, dict[str, Any]]:
        """A race against `name` over so many texts of each corpus, and the other's figures.

        Raises:
            NotHere: it can't run on this machine.
        """
        self.progress(f"beside {name}")
        given = self.plain if name.startswith("limner") else self.prefixed
        theirs = {corpus: _spread(of_corpus, texts) for corpus, of_corpus in given.items()}
        mine = {corpus: _spread(of_corpus, RACE_TEXTS) for corpus, of_corpus in self.plain.items()}
        with self.other(name) as other:
            batch = None
            if name in peers.NAMES:
                batch = other.ask(tune=[text for some in theirs.values() for text in some[: texts // 4]])["batch"]
            result = race(self.ours, other, mine, theirs)
            found = {corpus: other.embed(some) for corpus, some in theirs.items()}
            answers = {corpus: _spread(list(rows), texts) for corpus, rows in self.answers.items()}
            quality = compare(self.tasks, {corpus: np.array(rows) for corpus, rows in answers.items()}, found)
            figures = {
                "texts_per_s": round(result.rate(result.other, self.sizes), 1),
                "agreement": quality["agreement"],
                "cosine_min": quality["cosine_min"],
                "ours_ratio": round(result.ratio(self.sizes), 2),
                **{f"{corpus}_texts_per_s": round(1 / statistics.median(seconds), 1)
                   for corpus, seconds in result.other.items()},
            }  # fmt: skip
        return result, figures if batch is None else figures | {"batch": batch}


def run(options: Options, progress: Progress = log.info) -> dict[str, Any]:
    """Measures; minutes. `model.bench` says what each key means.

    Raises:
        ModelUnavailable, ModelCorrupt: the model or the texts can't be read.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(options, Path(scratch), progress)
        try:
            figures: dict[str, Any] = {"machine": machine.describe(options.device, bench.threads)}
            figures |= _choose_form(bench)
            figures |= bench.quality()
            figures |= _speed(bench)
            figures |= _peers(bench)
            figures |= _windows(bench)
            if options.soak_s:
                figures |= _soak(bench)
            figures["rss_mb"] = bench.ours.ask(embed=["memory"])["rss_mb"]
        finally:
            bench.ours.close()
        figures |= _orders(bench, figures["naive_texts_per_s"])
    figures["seconds"] = round(time.monotonic() - started)
    return figures


def _choose_form(bench: _Bench) -> dict[str, Any]:
    """One process with all cores, or one a core: the faster is what is measured from here on."""
    if bench.threads == 1:
        return {"processes": 1}
    try:
        result, pool = bench.beside("limner-pool", RACE_TEXTS)
    except NotHere as reason:
        return {"processes": 1, "pool_skipped": str(reason)}
    rates = {
        "one_process_texts_per_s": round(result.rate(result.ours, bench.sizes), 1),
        "pool_texts_per_s": pool["texts_per_s"],
    }
    if pool["ours_ratio"] >= 1:
        return {"processes": 1, **rates}
    bench.ours.close()
    bench.ours = bench.other("limner-pool")
    return {"processes": bench.threads, **rates}


def _speed(bench: _Bench) -> dict[str, Any]:
    """Ours beside the naive loop, and how far both are from what padding and the machine allow."""
    result, naive = bench.beside("naive", NAIVE_TEXTS)
    lengths = [length for of_corpus in bench.lengths.values() for length in of_corpus]
    flops = machine.flops_per_text(bench.folder, lengths)
    rate = result.rate(result.ours, bench.sizes)
    measured, named = machine.peaks_gflops(bench.options.device)
    by_corpus = {
        f"{corpus}_{key}": value
        for corpus, seconds in result.ours.items()
        for key, value in {
            "texts_per_s": round(1 / statistics.median(seconds), 1),
            "naive_texts_per_s": naive[f"{corpus}_texts_per_s"],
            "ratio": round(statistics.median(n / o for n, o in zip(result.other[corpus], seconds, strict=True)), 2),
            "texts": bench.sizes[corpus],
            "tokens_per_text": round(statistics.mean(bench.lengths[corpus]), 2),
            "flop_bound": round(MAX_TOKENS / statistics.mean(bench.lengths[corpus]), 2),
        }.items()
    }
    return {
        "texts_per_s": round(rate, 1),
        "naive_texts_per_s": naive["texts_per_s"],
        "ratio": naive["ours_ratio"],
        "naive_agreement": naive["agreement"],
        "tokens_per_text": round(statistics.mean(lengths), 2),
        "flop_bound": round(MAX_TOKENS / statistics.mean(lengths), 2),
        "gflops_per_text": round(flops / 1e9, 3),
        "gemm_peak_gflops": round(measured),
        "gemm_peak_share": round(rate * flops / 1e9 / measured, 3),
        **({"device_peak_gflops": named, "device_peak_share": round(rate * flops / 1e9 / named, 3)} if named else {}),
        **by_corpus,
    }


def _peers(bench: _Bench) -> dict[str, Any]:
    """Each peer's figures or why it took no part, and how many times faster ours is than the best of equal quality."""
    found: dict[str, Any] = {}
    for name in peers.NAMES:
        try:
            found[name] = bench.beside(name, RACE_TEXTS)[1]
        except NotHere as reason:
            found[name] = {"skipped": str(reason)}
    ran = {name: peer for name, peer in found.items() if "skipped" not in peer}
    equal = {name: peer["ours_ratio"] for name, peer in ran.items() if peer["agreement"] >= EQUAL_AGREEMENT}
    best = min(equal, key=lambda name: equal[name], default=None)
    return {
        "peers": found,
        "best_equal_peer": best,
        "best_equal_peer_ratio": equal[best] if best else None,
        "best_peer_ratio": min((peer["ours_ratio"] for peer in ran.values()), default=None),
    }


def _windows(bench: _Bench) -> dict[str, Any]:
    """Milliseconds of one call of so many texts, drawn from all corpora alike."""
    medians, tails = {}, {}
    for size, count in WINDOWS.items():
        count = max(3, count // 10) if (bench.options.limit or RACE_TEXTS) < RACE_TEXTS else count
        took = [_window(bench, size, seed)[0] for seed in range(count)][min(5, count // 8) :]
        medians[str(size)] = round(statistics.median(took), 2)
        tails[str(size)] = round(float(np.percentile(took, 99)), 2)
    return {"p50_ms": medians, "p99_ms": tails}


def _window(bench: _Bench, size: int, seed: int) -> tuple[float, float]:
    """Milliseconds of one window, and the memory in use after it, MB."""
    random = np.random.default_rng(seed)
    corpora = list(bench.plain.values())
    chosen = [corpora[index % len(corpora)] for index in random.permutation(size)]
    texts = [corpus[random.integers(len(corpus))] for corpus in chosen]
    answer = bench.ours.ask(embed=texts)
    return answer["seconds"] * 1e3, answer["rss_mb"]


def _soak(bench: _Bench) -> dict[str, Any]:
    bench.progress(f"windows of {SOAK_WINDOW} for {bench.options.soak_s:.0f} s")
    took: list[float] = []
    rss: list[float] = []
    started = time.monotonic()
    while (now := time.monotonic() - started) < bench.options.soak_s:
        milliseconds, megabytes = _window(bench, SOAK_WINDOW, len(took))
        took.append(milliseconds)
        if now > min(SOAK_WARM_S, bench.options.soak_s / 4):
            rss.append(megabytes)
    median, tail = statistics.median(took), float(np.percentile(took, 99))
    return {
        "soak_s": bench.options.soak_s,
        "soak_windows": len(took),
        "soak_p99_over_median": round(tail / median, 3),
        "soak_rss_mb": [rss[0], max(rss), rss[-1]] if rss else [],
    }


def _orders(bench: _Bench, naive_texts_per_s: float) -> dict[str, Any]:
    """Order lines as they come through the engine with its memory of texts, beside the naive loop without one."""
    bench.progress("order lines")
    if bench.options.model == RANDOM:
        return {"repeat_ratio": None, "repeat_skipped": "a random model knows no order lines"}
    where, batches = order_batches(min(ORDER_LINES, (bench.options.limit or ORDER_LINES) * 10))
    lines = sum(map(len, batches))
    try:
        with bench.other("limner-evidence") as engine:
            seconds = sum(engine.ask(embed=batch)["seconds"] for batch in batches)
    except NotHere as reason:
        return {"repeat_ratio": None, "repeat_skipped": str(reason)}
    return {
        "repeat_ratio": round(lines / seconds / naive_texts_per_s, 1),
        "repeat_lines_per_s": round(lines / seconds, 1),
        "repeat_lines": lines,
        "repeat_texts": len({text for batch in batches for text in batch}),
        "repeat_from": where,
    }


def _cut(text: str, reader: TokenReader) -> str:
    """The text's beginning that has at most MAX_TOKENS tokens: where the naive loop stops reading, so that all
    contestants read the same."""
    room = MAX_TOKENS - len(reader.start) - len(reader.end)
    encoding = reader.tokenizer.encode(reader.plain(text), add_special_tokens=False)
    return text if len(encoding.ids) <= room else text[: encoding.offsets[room - 1][1] - len(reader.prefix)]


def _spread(rows: list[Any], count: int) -> list[Any]:
    return rows if len(rows) <= count else [rows[index * len(rows) // count] for index in range(count)]
