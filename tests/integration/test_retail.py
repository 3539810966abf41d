"""All of a shop's orders through `limner load` and a worker: what pandas computes straight from the file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import redis

from streaming.embedded.broker import Broker
from streaming.events.types import MONEY
from streaming.profiles import schema
from tests.chaos import history

RETAIL = Path(__file__).parents[3] / "shared" / "data" / "online_retail_2010-12_2011-09.csv.gz"


def profiles(url: str, namespace: str) -> dict[str, dict[str, object]]:
    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter(f"{namespace}:*:p", count=10_000))
        stored = client.mget(keys) if keys else []
    unfolded = [schema.unfold(raw) for raw in stored if raw is not None]
    return {profile["id"]: profile["o"] for profile in unfolded}


@pytest.mark.skipif(not RETAIL.exists(), reason="Online Retail is not on this machine")
@pytest.mark.timeout(300)
def test_every_customers_orders_spend_and_cancellations_are_those_of_pandas(broker: Broker, redis_url: str) -> None:
    settings = history.fresh_settings(broker.bootstrap, redis_url)
    environment = history.environment(settings)
    loading = [sys.executable, "-m", "streaming.cli", "load", "--preset", "online-retail", str(RETAIL)]
    subprocess.run(loading, env={**os.environ, **environment}, check=True, capture_output=True)

    raw = pd.read_csv(RETAIL, dtype={"InvoiceNo": str, "StockCode": str}).dropna(subset=["CustomerID"])
    raw["customer"] = raw.CustomerID.astype(int).astype(str)
    raw["value"] = raw.Quantity * raw.UnitPrice
    cancelled = raw.InvoiceNo.str.startswith("C")
    placed = raw[~cancelled].groupby("customer").agg(n=("InvoiceNo", "nunique"), value=("value", "sum"))
    undone = raw[cancelled].groupby("customer").agg(n=("InvoiceNo", "nunique"), value=("value", "sum"))
    invoices = int(placed.n.sum() + undone.n.sum())

    with history.start_worker(environment):
        deadline = time.monotonic() + 120
        while True:
            found = profiles(redis_url, settings.namespace)
            if sum(orders["n"] + orders["c"] for orders in found.values()) == invoices:  # type: ignore[operator]
                break
            assert time.monotonic() < deadline, f"{len(found)} customers' orders merged"
            time.sleep(1)

    assert set(found) == set(raw.customer)
    for customer, orders in found.items():
        spent, cancelled_value, returned = orders["m"]["GBP"]  # type: ignore[index]
        assert (orders["n"], orders["c"]) == (placed.n.get(customer, 0), undone.n.get(customer, 0))
        assert spent / MONEY == pytest.approx(placed.value.get(customer, 0), abs=1e-6)
        assert cancelled_value / MONEY == pytest.approx(-undone.value.get(customer, 0), abs=1e-6)
        assert (orders["r"], returned) == (0, 0)
