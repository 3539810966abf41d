"""The client for threads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import redis

from streaming.client import calls
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from streaming.profiles.view import Profile


class ProfileClient:
    """Reads profiles from Redis. Thread-safe; keeps a pool of connections, so make one and share it.

        with ProfileClient("redis://127.0.0.1:6379/0") as profiles:
            profile = profiles.get("customer-17")

    Every wait (to connect, for an answer) ends after `timeout_s`. `AsyncProfileClient` is its twin.

    Raises, here and in every method:
        InvalidArgument: an argument out of range, by name.
        StoreUnavailable: Redis did not answer in time, or refused.
        ProfileUnreadable: a profile is damaged, or written by a newer limner.
    All are `streaming.errors.LimnerError`.
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
            self._redis = redis.Redis.from_url(url, **options)
        except ValueError as error:
            raise calls.InvalidArgument("url", str(error)) from None
        self._url = url
        self._namespace = namespace
        self._timeout_s = timeout_s

    def get(self, customer_id: str) -> Profile | None:
        """The profile as of now; None for a customer without one."""
        key = profile_key(self._namespace, calls.checked_id(customer_id))
        with calls.naming_failures(self._url, self._timeout_s):
            reply = self._redis.get(key)
        return calls.read_profile(reply, calls.now_ms())

    def get_many(self, ids: Iterable[str]) -> dict[str, Profile | None]:
        """The profiles of `ids` in one round trip, in their order; None for customers without one."""
        wanted = calls.checked_ids(ids)
        if not wanted:
            return {}
        with calls.naming_failures(self._url, self._timeout_s):
            replies = self._redis.mget([profile_key(self._namespace, customer_id) for customer_id in wanted])
        return calls.read_profiles(wanted, replies, calls.now_ms())

    def audience(self, facet: str, label: str, limit: int = 100, min_strength: float = 0.0) -> list[tuple[str, float]]:
        """Customers with a label, strongest first: (customer_id, strength 0..1).

        Raises:
            UnknownFacet: no event has given evidence for this facet yet.
        """
        calls.check_audience(facet, label, limit, min_strength)
        with calls.naming_failures(self._url, self._timeout_s):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hget(half_lives_key(self._namespace), facet)
            pipeline.zrange(audience_key(self._namespace, facet, label), 0, limit - 1, desc=True, withscores=True)
            half_life, members = pipeline.execute()
        return calls.read_audience(facet, half_life, members, min_strength, calls.now_ms())

    def ping(self) -> None:
        """Ask Redis whether it answers."""
        with calls.naming_failures(self._url, self._timeout_s):
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
