"""`limner bench NAME`: figures beside a baseline of the same run. Each module has `run() -> dict`."""
