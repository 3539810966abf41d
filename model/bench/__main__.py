"""`python -m model.bench`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.bench.figures import RANDOM, Options, run
from model.compress import local_folder
from model.errors import ModelError
from model.files import default_cache_dir


def _options() -> tuple[Options, bool]:
    parser = argparse.ArgumentParser(prog="python -m model.bench", description="Measures the engine beside its peers.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--model", default="base", help=f"a model folder, base, or {RANDOM}: e5-small's shape")
    parser.add_argument("--reference", type=Path, help="the folder that peers read, where --model is compressed")
    parser.add_argument("--texts", default="", help="CSV files with a column text, separated by commas")
    parser.add_argument("--limit", type=int, help="of each file at most so many texts: for a quick look")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS", help="windows of 64 for so long")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=FILE",
                        help="a peer's own interpreter, for one that needs another Python")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    model = given.model if given.model == RANDOM else local_folder(given.model, default_cache_dir())
    texts = tuple(Path(file) for file in given.texts.split(",") if file)
    pythons = dict(pair.split("=", 1) for pair in given.python)
    options = Options(model, given.device, texts, given.limit, given.reference, given.soak, given.threads, pythons)
    return options, given.json


def main() -> int:
    try:
        options, as_json = _options()
        figures = run(options, lambda said: print(said, file=sys.stderr, flush=True))
    except ModelError as error:
        print(f"model.bench: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        for key, value in figures.items():
            print(f"{key:28} {json.dumps(value, ensure_ascii=False)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
