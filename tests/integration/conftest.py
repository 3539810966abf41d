from __future__ import annotations

import os
from pathlib import Path

import pytest

from model import Engine
from model.e5 import ensure_base

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """Where the tests' base encoder is kept from run to run; converted on the first."""
    return Path(os.environ.get("LIMNER_CACHE_DIR") or ROOT / ".cache")


@pytest.fixture(scope="session")
def base_folder(model_cache: Path) -> Path:
    return ensure_base(model_cache)


@pytest.fixture(scope="session")
def engine(model_cache: Path, base_folder: Path) -> Engine:
    """One engine for all tests: base encoder, both shipped packs."""
    return Engine.load("base", device="cpu", packs=["ecommerce", "finance"], cache_dir=model_cache, dtype="float32")
