"""The client for an event loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import redis.asyncio

from streaming.client import calls
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from streaming.profiles.view import Profile


class AsyncProfileClient:
    """`ProfileClient` with awaits: same arguments, results and exceptions. For one event loop.

    async with AsyncProfileClient("redis://127.0.0.1:6379/0") as profiles:
        profile = await profiles.get("customer-17")
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        *,
        namespace: str = "lm",
        timeout_s: float = calls.TIMEOUT_S,
    ) -> None:
        options = calls.connection_options(timeout_s)
        try:
            self._redis = redis.asyncio.Redis.from_url(url, **options)
        except ValueError as error:
            raise calls.InvalidArgument("url", str(error)) from None
        self._url = url
        self._namespace = namespace
        self._timeout_s = timeout_s

    async def get(self, customer_id: str) -> Profile | None:
        """See `ProfileClient.get`."""
        key = profile_key(self._namespace, calls.checked_id(customer_id))
        with calls.naming_failures(self._url, self._timeout_s):
            reply = await self._redis.get(key)
        return calls.read_profile(reply, calls.now_ms())

    async def get_many(self, ids: Iterable[str]) -> dict[str, Profile | None]:
        """See `ProfileClient.get_many`."""
        wanted = calls.checked_ids(ids)
        if not wanted:
            return {}
        with calls.naming_failures(self._url, self._timeout_s):
            replies = await self._redis.mget([profile_key(self._namespace, customer_id) for customer_id in wanted])
        return calls.read_profiles(wanted, replies, calls.now_ms())

    async def audience(
        self, facet: str, label: str, limit: int = 100, min_strength: float = 0.0
    ) -> list[tuple[str, float]]:
        """See `ProfileClient.audience`."""
        calls.check_audience(facet, label, limit, min_strength)
        with calls.naming_failures(self._url, self._timeout_s):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hget(half_lives_key(self._namespace), facet)
            pipeline.zrange(audience_key(self._namespace, facet, label), 0, limit - 1, desc=True, withscores=True)
            half_life, members = await pipeline.execute()
        return calls.read_audience(facet, half_life, members, min_strength, calls.now_ms())

    async def ping(self) -> None:
        """See `ProfileClient.ping`."""
        with calls.naming_failures(self._url, self._timeout_s):
            await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
