"""The two clients of the SDK behind one face."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from streaming.client import AsyncProfileClient, ProfileClient


class Both:
    """One client of either kind, kept open: `client.get(...)` blocks, whichever it is."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner() if kind == "async" else None
        if self._runner is None:
            self.client: Any = ProfileClient(url, namespace="t", **options)
        else:
            self.client = self._run(self._open(url, options))

    @staticmethod
    async def _open(url: str, options: dict[str, Any]) -> AsyncProfileClient:
        return AsyncProfileClient(url, namespace="t", **options)

    def _run(self, call: Any) -> Any:
        return call if self._runner is None else self._runner.run(call)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._run(getattr(self.client, method)(*args, **kwargs))

    def pause(self, seconds: float) -> None:
        """Let an event loop run, which the blocking calls of a test do not."""
        if self._runner is None:
            time.sleep(seconds)
        else:
            self._run(asyncio.sleep(seconds))

    def __enter__(self) -> Both:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self.client.close())
        if self._runner is not None:
            self._runner.close()
