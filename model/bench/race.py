"""Contestants in processes of their own, measured in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.errors import EngineFailed

ROUNDS = 3

Embeddings = NDArray[np.float32]


class NotHere(Exception):
    """A contestant can't run on this machine; the text says why."""


class Contestant:
    """One of `model.bench.contestant.CONTESTANTS` in its process, ready. A context manager.

    Raises:
        NotHere: it can't run here.
    """

    def __init__(self, name: str, folder: Path, device: str, threads: int, python: str = sys.executable) -> None:
        self.name = name
        self._scratch = tempfile.TemporaryDirectory()
        root = str(Path(__file__).parents[2])
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, inherited)]),
            # peers have their own defaults; `model` sets this for itself
            **({"OMP_WAIT_POLICY": "PASSIVE"} if name.startswith("limner") else {}),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
        }
        if not name.startswith("limner"):
            environment.pop("OMP_WAIT_POLICY", None)
        self._errors = (Path(self._scratch.name) / "stderr").open("w+")
        script = Path(__file__).with_name("contestant.py")
        self._process = subprocess.Popen(
            [python, "-P", str(script), name, str(folder), device, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip
        try:
            answer = self._read()
        except EngineFailed as error:
            self.close()
            raise NotHere(str(error)) from error
        if "skipped" in answer:
            self.close()
            raise NotHere(answer["skipped"])

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101  a pipe was asked for
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._read()

    def embed(self, texts: Sequence[str]) -> Embeddings:
        file = str(Path(self._scratch.name) / "rows.npy")
        self.ask(embed=list(texts), save=file)
        rows: Embeddings = np.load(file)
        return rows

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  a pipe was asked for
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["nothing"])[-1]
            raise EngineFailed(f"{self.name} ended with {self._process.wait()}; it last said: {last[:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # its loop ends
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Race:
    """Seconds a text by corpus, one number a round, of two that ran in turns."""

    ours: Mapping[str, list[float]]
    other: Mapping[str, list[float]]

    def rate(self, seconds: Mapping[str, list[float]], sizes: Mapping[str, int]) -> float:
        """Texts/s over corpora of these sizes."""
        return sum(sizes.values()) / sum(statistics.median(seconds[name]) * size for name, size in sizes.items())

    def ratio(self, sizes: Mapping[str, int]) -> float:
        """How many times faster ours is: the median over the rounds, each of its own pair."""
        rounds = range(len(next(iter(self.ours.values()))))
        return statistics.median(
            sum(self.other[name][index] * size for name, size in sizes.items())
            / sum(self.ours[name][index] * size for name, size in sizes.items())
            for index in rounds
        )


def race(ours: Contestant, other: Contestant, texts: Mapping[str, list[str]], other_texts: Mapping[str, list[str]],
         rounds: int = ROUNDS) -> Race:  # fmt: skip
    """Both over their texts of each corpus, in turns, so that a drifting machine slows both alike."""
    result = Race({name: [] for name in texts}, {name: [] for name in texts})
    for _ in range(rounds):
        for name in texts:
            for who, given, seconds in ((ours, texts, result.ours), (other, other_texts, result.other)):
                seconds[name].append(who.ask(embed=given[name])["seconds"] / len(given[name]))
    return result
