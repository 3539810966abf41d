"""Bearer tokens of an OpenID Connect issuer (RFC 9068, OpenID Connect Core 3.1.3.7)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import jwt

from streaming import logs
from streaming.access.callers import SCOPES, Caller, Refused
from streaming.settings import Settings, https_url

# Signatures with a key pair only. With HMAC among them, whoever has the issuer's public key could sign (RFC 8725, 2.1).
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

# Keys are asked for at most so often, whatever tokens say: a made-up key id must not turn into load on the issuer.
REFRESH_FLOOR_S = 10.0

# A key that the issuer takes back is trusted for so long; asking again happens beside the requests.
KEYS_FRESH_S = 300.0

# Clocks of issuer and service may differ by so much.
LEEWAY_S = 30.0

# One request to the issuer; a caller waits for it only when its key is not known yet.
FETCH_S = 5.0

# Tokens whose signature need not be looked at again: callers use one for minutes, and looking takes longer than a
# look-up in Redis. About 2 MB.
MAX_VERIFIED = 10_000

# Of a subject this much is kept: it goes into audit lines.
_SUBJECT_CHARS = 128

_log = logs.get(__name__)


class Verifier:
    """Who a token speaks for. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._claim = settings.oidc_scopes_claim
        self._rate = settings.rate_limit
        self._jwks_url = settings.oidc_jwks_url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._verified: dict[bytes, tuple[Caller, float]] = {}  # by the token's hash: for whom, and until when
        self._fetched_at = self._asked_at = float("-inf")
        self._asking = asyncio.Lock()
        self._beside: asyncio.Task[None] | None = None

    async def verify(self, token: str) -> Caller:
        """
        Raises:
            Refused: not a token of this issuer for this audience, expired, or its key can't be had now.
        """
        if time.monotonic() - self._fetched_at > KEYS_FRESH_S and self._keys:
            self._ask_beside()
        name = hashlib.sha256(token.encode()).digest()
        caller, until = self._verified.get(name, (None, 0.0))
        if caller is None or until <= time.time():
            caller, until = await self._look(token)
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified[name] = caller, until
        return caller

    async def _look(self, token: str) -> tuple[Caller, float]:
        """Whose it is, and until when that holds (s since the epoch)."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._key(kid if isinstance(kid, str) else "")
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Refused("unauthorized", "this token has expired") from None
        except jwt.PyJWTError as error:  # its messages name a claim or an algorithm, never the token
            raise Refused("unauthorized", f"this token is not valid here: {error}") from None
        scopes = _words(claims.get(self._claim)) & SCOPES
        return Caller(f"oidc:{str(claims['sub'])[:_SUBJECT_CHARS]}", frozenset(scopes), self._rate), float(
            claims["exp"]
        )

    async def _key(self, kid: str) -> jwt.PyJWK:
        key = self._keys.get(kid)
        if key is None:
            await self._ask()
            key = self._keys.get(kid)
        if key is None and not self._keys:
            raise Refused("issuer-unavailable", "the issuer's keys can't be had now", retry_after_s=REFRESH_FLOOR_S)
        if key is None:
            raise Refused("unauthorized", "this token was signed with a key that the issuer does not publish")
        return key

    def _ask_beside(self) -> None:
        if self._beside is None or self._beside.done():
            self._beside = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        async with self._asking:
            if time.monotonic() - self._asked_at < REFRESH_FLOOR_S:
                return
            self._asked_at = time.monotonic()
            try:
                keys = await asyncio.to_thread(self._fetch)
            except (jwt.PyJWTError, OSError, ValueError) as error:
                _log.warning("the issuer's keys can't be had", issuer=self._issuer, error=str(error))
                return
            self._keys = keys
            self._verified.clear()  # by a key that may be gone
            self._fetched_at = time.monotonic()

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        url = self._jwks_url or self._discover()
        keys = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_S).get_signing_keys()
        return {key.key_id: key for key in keys if key.key_id}

    def _discover(self) -> str:
        where = f"{self._issuer.removesuffix('/')}/.well-known/openid-configuration"
        # PyJWT has no client for it; its client of key sets takes any JSON object from a URL.
        found: dict[str, Any] = jwt.PyJWKClient(where, cache_jwk_set=False, timeout=FETCH_S).fetch_data()
        if found.get("issuer") != self._issuer:  # OpenID Connect Discovery 4.3
            raise ValueError(f"{where} is of issuer {found.get('issuer')!r}")
        return https_url(str(found.get("jwks_uri", "")))


def _words(claim: object) -> set[Any]:
    """A claim's scopes: words (RFC 8693) or a list of them; `limner:read` is `read`."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return {word.removeprefix("limner:") for word in words if isinstance(word, str)}
