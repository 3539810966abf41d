"""Admits a request, or says why not."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import TYPE_CHECKING

from streaming.access import keys
from streaming.access.callers import SCOPES, Caller, Refused, Scope
from streaming.access.rate import Buckets
from streaming.settings import LOOPBACK, Settings

if TYPE_CHECKING:
    from streaming.access.oidc import Verifier

# A change of the keys file is in force after this.
LOOK_S = 1.0


class Guard:
    """Of one service: its keys, its issuer, its callers' rates. Without keys and issuer, all of this
    machine may do everything."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: the keys file can't be read.
        """
        self._api_key = settings.api_key.get_secret_value().encode()
        self._ring = keys.Keyring(settings.keys_file) if settings.keys_file else None
        self._verifier = _verifier(settings) if settings.oidc_issuer else None
        self._open = not settings.admits_by_key
        self._hosts = {name.encode() for name in (*LOOPBACK, settings.http_host.lower())}
        self._namespace = settings.namespace
        self._rate = settings.rate_limit
        self._buckets = Buckets()

    async def admit(self, authorization: bytes, host: bytes, scope: Scope) -> Caller:
        """Who asks, once they may.

        Args:
            authorization, host: these headers' values, b"" without.

        Raises:
            Refused
        """
        caller = self._local(host) if self._open else await self._caller(authorization)
        # Before the scope is looked at: trying scopes is not free either.
        if caller.rate and (wait := self._buckets.take(caller.id, caller.rate, time.monotonic())):
            raise Refused("rate-limited", f"{caller.id} may send {caller.rate:g} requests a second", retry_after_s=wait)
        if scope not in caller.scopes:
            raise Refused("missing-scope", f"{caller.id} has no scope {scope!r}")
        return caller

    def _local(self, host: bytes) -> Caller:
        # A web page can have its own name resolve to 127.0.0.1 and so reach what listens there (DNS rebinding);
        # it can't choose the Host header.
        name = host.lower()
        name = name[1:].partition(b"]")[0] if name.startswith(b"[") else name.partition(b":")[0]
        if name not in self._hosts:
            raise Refused(
                "not-this-host",
                "without keys only callers on this machine are served, by its own names: "
                "set LIMNER_KEYS_FILE, or ask for localhost",
            )
        return Caller("local", SCOPES, self._rate)

    async def _caller(self, authorization: bytes) -> Caller:
        scheme, _, given = authorization.partition(b" ")
        given = given.strip()
        if scheme.lower() != b"bearer" or not given.isascii() or not given:
            raise Refused("unauthorized", "send a key or a token as `Authorization: Bearer KEY`")
        if self._api_key and hmac.compare_digest(given, self._api_key):
            return Caller("api_key", SCOPES, self._rate)
        if self._ring and given.startswith(keys.PREFIX.encode()):
            return self._by_key(self._ring.find(given.decode()))
        if self._verifier and given.count(b".") == 2:
            return await self._verifier.verify(given.decode())
        raise Refused("unauthorized", "this key is not known")

    def _by_key(self, key: keys.Key) -> Caller:
        if key.namespace != self._namespace:
            raise Refused(
                "wrong-namespace",
                f"key {key.id} is of namespace {key.namespace!r}, this service serves {self._namespace!r}",
            )
        return Caller(f"key:{key.id}", frozenset(key.scopes), key.rate or self._rate)

    async def watch(self) -> None:
        """Keep up with the keys file until cancelled."""
        while self._ring:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self._ring.refresh)  # a file of a network may let wait


def _verifier(settings: Settings) -> Verifier:
    """
    Raises:
        ModuleNotFoundError: PyJWT is not there, which only who uses tokens needs.
    """
    from streaming.access.oidc import Verifier

    return Verifier(settings)
