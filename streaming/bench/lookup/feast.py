"""Feast's own feature server over the same kind of store, asked for as many numbers as a profile has labels.

Feast pins other versions than limner, so it lives in an environment of its own, whose interpreter is given. One
feature view, the best case for it: each further view is a further read.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from streaming.bench.lookup import service
from streaming.bench.lookup.fill import REFS, customer_id
from streaming.bench.lookup.generator import request
from streaming.embedded.processes import free_port
from streaming.embedded.store import Store

# Feast's writer takes some 4,000 rows a second; its reads are by key and don't depend on how many there are.
CUSTOMERS = 10_000

_REPOSITORY = '''
import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32

customers, names = int(sys.argv[1]), sys.argv[2].split(",")
now = datetime.now(timezone.utc)
rows = pd.DataFrame({name: np.random.rand(customers).astype("float32") for name in names})
rows["customer_id"] = [f"customer-{number:08}" for number in range(customers)]
rows["ts"] = now
rows.to_parquet("rows.parquet")
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
view = FeatureView(
    name="profile", entities=[customer], ttl=timedelta(days=30),
    schema=[Field(name=name, dtype=Float32) for name in names],
    source=FileSource(path="rows.parquet", timestamp_field="ts"), online=True,
)
store = FeatureStore(".")
store.apply([customer, view])
for first in range(0, customers, 1000):
    store.write_to_online_store("profile", rows[first:first + 1000])
'''  # fmt: skip


def measure(python: str) -> dict[str, Any]:
    """The keys of `service.figures`, at the pace that it can hold instead of 2,000/s."""
    names = [f"{ref.facet}_{ref.label}".replace("-", "_") for ref in REFS]
    with Store.start() as store, tempfile.TemporaryDirectory(prefix="limner-feast-") as name:
        folder, port, at = Path(name), free_port(), urlsplit(store.url)
        (folder / "feature_store.yaml").write_text(
            f"project: limner_bench\nregistry: registry.db\nprovider: local\nentity_key_serialization_version: 3\n"
            f"online_store:\n  type: redis\n  connection_string: {at.hostname}:{at.port}\n"
        )
        (folder / "repository.py").write_text(_REPOSITORY)
        made = subprocess.run(
            [python, "repository.py", str(CUSTOMERS), ",".join(names)], cwd=folder, capture_output=True, text=True
        )
        if made.returncode:
            return {"failed": made.stderr.strip().splitlines()[-1][:300]}
        (folder / "repository.py").unlink()  # `feast serve` would run it again
        feast = str(Path(python).with_name("feast"))
        arguments = [feast, "-c", name, "serve", "-p", str(port), "-h", "127.0.0.1", "--no-access-log",
                     "--max-requests", "100000000", "-w", "1"]  # fmt: skip
        with service.pinned_child("feast", arguments, {"FEAST_USAGE": "False"}, port, python=python):
            found = service.figures(port, _requests(1, names), {ids: _requests(ids, names) for ids in service.IDS})
            pace = found["http_rps"] // 2
            p50, p99 = service.paced(port, _requests(1, names), pace)
            return found | {"customers": CUSTOMERS, "paced_per_s": pace, "paced_p50_ms": p50, "paced_p99_ms": p99}


def _requests(ids: int, names: list[str]) -> list[bytes]:
    chance = random.Random(7)  # noqa: S311
    features = [f"profile:{name}" for name in names]
    return [
        request("POST", "/get-online-features", msgspec.json.encode(
            {"features": features, "entities": {"customer_id": [
                customer_id(chance.randrange(CUSTOMERS)) for _ in range(ids)]}}))
        for _ in range(500)
    ]  # fmt: skip
