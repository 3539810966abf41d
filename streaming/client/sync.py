"""The client for threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Self, cast

from streaming.client import audience as audiences
from streaming.client import calls, tokens
from streaming.client.audience import Audience
from streaming.client.cache import MISSING, ProfileCache
from streaming.client.explain import Explanation, explain
from streaming.client.reader import Reader
from streaming.client.tokens import Token
from streaming.client.watch import Watch
from streaming.controls.types import Purpose
from streaming.profiles.keys import profile_key
from streaming.profiles.view import Profile


class ProfileClient:
    """Reads profiles from Redis. Thread-safe; keeps its connections, so make one and share it.

        with ProfileClient("redis://127.0.0.1:6379/0") as profiles:
            profile = profiles.get("customer-17")

    `AsyncProfileClient` is its twin.

    Args:
        url: `redis://HOST:PORT/DB` or `unix://PATH` (one server); `redis+sentinel://H1:P1,H2:P2/SERVICE/DB` (the
            master that these Sentinels name, found again after a failover); `redis+cluster://HOST:PORT` (any node
            of a cluster). `rediss` for TLS; `USER:PASSWORD@` before the host.
        namespace: the workers' setting `namespace`.
        timeout_s: an attempt to read ends after this long; so does each step of connecting.
        deadline_s: no attempt begins later than this after the call. By default timeout_s, so that an attempt which
            ran into its timeout is not repeated: that would double the wait that the caller chose.
        retries: further attempts after a connection failed, with random pauses, within the deadline.
        cache_mb: memory for profiles kept in this process; 0 keeps none. Redis announces each change, which drops
            the kept profile; while the connection for that is down, nothing is kept and calls read from Redis. The
            strengths of a kept profile are up to 10 s old (off by 0.00001). Callers share it: don't change it.
        replicas: URLs of replicas, for hedge_after_ms; Sentinel and Cluster name their own.
        hedge_after_ms: when `get` or `get_many` has no answer after this long, or a failure, a replica is asked as
            well, and the first answer taken; 0 never asks. A replica may lag behind.
        consent_default: purpose -> whether a customer who said nothing grants it, as the workers' setting
            `consent_default` (there "granted", here True); purposes not named are granted.

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
        deadline_s: float | None = None,
        retries: int = calls.RETRIES,
        cache_mb: float = 0,
        replicas: Sequence[str] = (),
        hedge_after_ms: float = 0,
        consent_default: Mapping[str, bool] | None = None,
    ) -> None:
        options = calls.options(url, namespace, timeout_s, deadline_s, retries, cache_mb, replicas, hedge_after_ms)
        self._namespace = namespace
        self._consent_default = calls.checked_defaults(consent_default)
        self._reader = Reader(options)
        self._watch = None
        if options.cache_bytes:
            self._watch = Watch(ProfileCache(namespace, options.cache_bytes), self._reader.primary.announcing)

    def get(self, customer_id: str, *, purpose: Purpose | None = None) -> Profile | None:
        """The profile as of now, with the events of all ids that are linked with this one; None without any.

        Args:
            purpose: what it is read for: analytics, personalisation, ads or training; None: consent is not asked.

        Raises:
            ConsentDenied: the customer does not grant it, in person or by `consent_default`.
        """
        calls.checked_purpose(purpose)
        return calls.for_purpose(self._find(customer_id), purpose, self._consent_default)

    def get_many(self, ids: Iterable[str]) -> dict[str, Profile | None]:
        """The profiles of `ids` in their order, in one round trip (in a cluster: one to each node that has some;
        with links: one more for each step that they lead away); None for customers without one."""
        wanted = calls.checked_ids(ids)
        if self._watch is None:
            return self._people(wanted, self._many(wanted)[0])
        kept = {customer_id: self._watch.cache.get(customer_id) for customer_id in wanted}
        missing = [customer_id for customer_id, profile in kept.items() if profile is MISSING]
        return cast(dict[str, Profile | None], kept | self._read_and_keep(missing, self._watch))

    def audience(
        self, facet: str, label: str, limit: int = 100, min_strength: float = 0.0, cursor: str | None = None
    ) -> Audience:
        """Customers with a label, strongest first: a list of (customer_id, strength 0..1), at most `limit`.

        Its `cursor` gives the next page to a call with the same facet and label; None after the last. A customer
        whose strength grows while someone pages may be missed, and none comes twice.

        Raises:
            UnknownFacet: no event has given evidence for this facet yet.
        """
        page = audiences.query(facet, label, limit, min_strength, cursor)
        commands = audiences.commands(self._namespace, page)
        half_life, members = self._reader.read(lambda server, within_s: server.ask(*commands, within_s=within_s))
        return audiences.read(page, half_life, members, calls.now_ms())

    def explain(self, customer_id: str) -> Explanation | None:
        """Why the profile says what it says: each label's strength and freshness with the sources, the newest
        events and the model version behind it, for this id alone. None for a customer without a profile."""
        reply = self._value(calls.checked_id(customer_id))
        return None if reply is None else explain(reply, calls.now_ms())

    def wait_for(self, token: str | Token, timeout_s: float, *, purpose: Purpose | None = None) -> Profile:
        """Read your writes: wait until the profile holds the event of a token (`POST /v1/events` gives it).

        Looks at once, then after pauses of 1 ms doubling up to 20 ms.

        Raises:
            NotYetVisible: not within timeout_s.
            InvalidArgument: it is no token.
            ConsentDenied: as `get`.
        """
        calls.checked_purpose(purpose)
        token = calls.checked_token(token, timeout_s)
        end = monotonic() + timeout_s
        for pause_s in calls.wait_pauses():
            reply = self._value(token.customer_id)
            if reply is not None and tokens.holds(reply, token):
                if self._watch is not None:  # the announcement may come later than this answer
                    self._watch.cache.forget(token.customer_id)
                found = self._people([token.customer_id], [reply])
                if (profile := found[token.customer_id]) is not None:
                    return calls.for_purpose(profile, purpose, self._consent_default)
            left_s = end - monotonic()
            if left_s <= 0:
                break
            time.sleep(min(pause_s, left_s))
        raise calls.not_yet(token, timeout_s)

    def ping(self) -> None:
        """Ask Redis whether it answers."""
        self._reader.read(lambda server, within_s: server.ask(("PING",), within_s=within_s))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, customer_id: str) -> Profile | None:
        if self._watch is not None:
            kept = self._watch.cache.get(customer_id)
            if kept is not MISSING:
                return kept
            return self._read_and_keep([calls.checked_id(customer_id)], self._watch)[customer_id]
        key = profile_key(self._namespace, calls.checked_id(customer_id))
        reply, _ = self._reader.read_any(lambda server, within_s: server.one(key, within_s))
        return self._people([customer_id], [reply])[customer_id]

    def _value(self, customer_id: str) -> bytes | None:
        """The stored profile, from the primary."""
        key = profile_key(self._namespace, customer_id)
        return self._reader.read(lambda server, within_s: server.one(key, within_s))

    def _many(self, ids: Sequence[str]) -> tuple[list[bytes | None], bool]:
        """The stored profiles, and whether the primary gave them."""
        if not ids:
            return [], True
        keys = [profile_key(self._namespace, customer_id) for customer_id in ids]
        return self._reader.read_any(lambda server, within_s: server.many(keys, within_s))

    def _read_and_keep(self, ids: Sequence[str], watch: Watch) -> dict[str, Profile | None]:
        cache = watch.cache
        keys = {customer_id: profile_key(self._namespace, customer_id) for customer_id in ids}
        tickets = cache.begin(keys, self._reader.primary.source, watch.ensure)
        try:
            replies, from_primary = self._many(ids)
            profiles = self._people(ids, replies)
            if from_primary:  # a replica may still lack what was announced before
                cache.store(tickets, replies, profiles)
        finally:
            cache.abandon(tickets)
        return profiles

    def _people(self, ids: Sequence[str], replies: Sequence[bytes | None]) -> dict[str, Profile | None]:
        """The profiles of the persons, with a round trip for each step that links lead away from `ids`."""
        known: calls.Known = dict(zip(ids, replies, strict=True))
        while missing := calls.linked(ids, known):
            known.update(zip(missing, self._many(missing)[0], strict=True))
        return calls.read_people(ids, known, calls.now_ms())
