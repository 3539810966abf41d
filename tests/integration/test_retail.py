"""All of a shop's orders through `limner load` and a worker: what pandas computes straight from the file."""

from __future__ import annotations

from pathlib import Path

RETAIL = Path(__file__).parents[3] / "shared" / "data" / "online_retail_2010-12_2011-09.csv.gz"
