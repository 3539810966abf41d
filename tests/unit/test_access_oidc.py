"""Tokens, checked against a real issuer on the loopback that publishes its keys over HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from streaming.access import oidc
from streaming.access.callers import Caller, Refused
from streaming.access.oidc import Verifier
from streaming.settings import load
from tests.issuer import Issuer, public

T = TypeVar("T")
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer([public(RSA_KEY, "r1"), public(EC_KEY, "e1"), public(ED_KEY, "d1")])
    yield running
    running.close()


def claims(issuer: Issuer, **fields: Any) -> dict[str, Any]:
    now = int(time.time())
    told = {"iss": issuer.url, "aud": "limner", "sub": "svc-1", "iat": now, "exp": now + 300, "scope": "read ingest"}
    return {name: value for name, value in {**told, **fields}.items() if value is not None}


def token(issuer: Issuer, key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "r1", **fields: Any) -> str:
    return jwt.encode(claims(issuer, **fields), key, algorithm, headers={"kid": kid} if kid else None)


def with_verifier(issuer: Issuer, use: Callable[[Verifier], Awaitable[T]], **settings: object) -> T:
    told = {"oidc_issuer": issuer.url, "oidc_audience": "limner", **settings}

    async def run() -> T:
        return await use(Verifier(load(**told)))

    return asyncio.run(run())


def verify(issuer: Issuer, given: str, **settings: object) -> Caller:
    return with_verifier(issuer, lambda verifier: verifier.verify(given), **settings)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA_KEY, "RS256", "r1"), (EC_KEY, "ES256", "e1"), (ED_KEY, "EdDSA", "d1")],
)
def test_a_good_token_is_its_subject_with_its_scopes(issuer: Issuer, key: Any, algorithm: str, kid: str) -> None:
    caller = verify(issuer, token(issuer, key, algorithm, kid), rate_limit=7)
    assert caller == Caller("oidc:svc-1", frozenset({"read", "ingest"}), 7)
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


def test_a_key_set_may_be_named_without_discovery(issuer: Issuer) -> None:
    assert verify(issuer, token(issuer), oidc_jwks_url=f"{issuer.url}/keys").scopes
    assert issuer.asked == ["/keys"]


@pytest.mark.parametrize(
    ("claim", "value", "scopes"),
    [
        ("scope", "read write openid", {"read"}),
        ("scope", "limner:read limner:erase", {"read", "erase"}),
        ("roles", ["admin", 7, "label"], {"admin", "label"}),
        ("scope", None, set()),
        ("scope", {"read": True}, set()),
        ("scope", "", set()),
    ],
)
def test_scopes_come_from_the_claim_that_is_set(issuer: Issuer, claim: str, value: Any, scopes: set[str]) -> None:
    fields = {"scope": None, claim: value}
    assert verify(issuer, token(issuer, **fields), oidc_scopes_claim=claim).scopes == scopes


def of_public_key(issuer: Issuer) -> str:
    """HS256, with what the issuer publishes as the secret: PyJWT refuses to make one, an attacker does not."""
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT", "kid": "r1"}) + b"." + part(claims(issuer))
    mac = hmac.new(pem, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def altered(issuer: Issuer) -> str:
    head, _, signature = token(issuer).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(issuer, scope="admin")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


WRONG: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda issuer: token(issuer, exp=int(time.time()) - 60),
    "not yet valid": lambda issuer: token(issuer, nbf=int(time.time()) + 3600),
    "without expiry": lambda issuer: token(issuer, exp=None),
    "without subject": lambda issuer: token(issuer, sub=None),
    "of another audience": lambda issuer: token(issuer, aud="billing"),
    "without audience": lambda issuer: token(issuer, aud=None),
    "of another issuer": lambda issuer: token(issuer, iss="https://elsewhere"),
    "unsigned": lambda issuer: jwt.encode(claims(issuer), None, "none", headers={"kid": "r1"}),  # type: ignore[arg-type]
    "signed with the public key": of_public_key,
    "signed with another's key": lambda issuer: token(issuer, rsa.generate_private_key(65537, 2048)),
    "of another kind of key": lambda issuer: token(issuer, EC_KEY, "ES256", "r1"),
    "of an unknown key": lambda issuer: token(issuer, kid="r9"),
    "without a key's name": lambda issuer: token(issuer, kid=None),
    "altered": altered,
    "cut": lambda issuer: token(issuer)[:-4],
    "nonsense": lambda _: "a.b.c",
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_wrong_token_is_refused(issuer: Issuer, make: Callable[[Issuer], str]) -> None:
    wrong = make(issuer)
    with pytest.raises(Refused) as refused:
        verify(issuer, wrong)
    assert refused.value.reason == "unauthorized"
    assert not any(part and part in str(refused.value) for part in wrong.split(".") if len(part) > 1)


def test_a_secret_among_the_published_keys_signs_nothing(issuer: Issuer) -> None:
    secret = b"k" * 32
    encoded = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    issuer.keys.append({"kty": "oct", "k": encoded, "kid": "s1", "use": "sig", "alg": "HS256"})
    with pytest.raises(Refused):
        verify(issuer, token(issuer, secret, "HS256", "s1"))


def test_keys_are_asked_for_once_whatever_tokens_say(issuer: Issuer) -> None:
    """A flood of made-up key ids must not reach the issuer."""

    async def flood(verifier: Verifier) -> list[Any]:
        tokens = [token(issuer, kid=f"made-up-{index}") for index in range(50)]
        return await asyncio.gather(*(verifier.verify(it) for it in tokens), return_exceptions=True)

    answers = with_verifier(issuer, flood)
    assert all(isinstance(answer, Refused) for answer in answers)
    assert issuer.key_requests == 1


def test_a_rotated_key_is_found_and_one_taken_back_is_not(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    new = ec.generate_private_key(ec.SECP256R1())

    async def rotate(verifier: Verifier) -> None:
        assert await verifier.verify(token(issuer))
        issuer.keys[:] = [public(new, "e2")]
        with pytest.raises(Refused, match="does not publish"):  # within the floor
            await verifier.verify(token(issuer, new, "ES256", "e2"))
        assert issuer.key_requests == 1
        monkeypatch.setattr(oidc, "REFRESH_FLOOR_S", 0.0)
        assert await verifier.verify(token(issuer, new, "ES256", "e2"))
        assert issuer.key_requests == 2
        with pytest.raises(Refused, match="does not publish"):
            await verifier.verify(token(issuer))

    with_verifier(issuer, rotate)


def test_a_key_taken_back_stops_working_without_a_new_one_being_used(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "REFRESH_FLOOR_S", 0.0)
    monkeypatch.setattr(oidc, "KEYS_FRESH_S", 0.0)

    async def use(verifier: Verifier) -> None:
        assert await verifier.verify(token(issuer))
        issuer.keys[:] = [public(EC_KEY, "e1")]
        deadline = time.monotonic() + 5
        with pytest.raises(Refused, match="does not publish"):
            while time.monotonic() < deadline:
                await verifier.verify(token(issuer))
                await asyncio.sleep(0.02)

    with_verifier(issuer, use)


def test_a_token_seen_before_still_expires_and_is_told_from_others(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "LEEWAY_S", 0.0)

    async def use(verifier: Verifier) -> None:
        short, other = token(issuer, exp=int(time.time()) + 2), token(issuer, sub="svc-2", scope="erase")
        for _ in range(3):
            assert (await verifier.verify(short)).scopes == {"read", "ingest"}
            assert (await verifier.verify(other)).id == "oidc:svc-2"
            with pytest.raises(Refused):
                await verifier.verify(short[:-4])
        await asyncio.sleep(2.1)
        with pytest.raises(Refused, match="expired"):
            await verifier.verify(short)
        assert await verifier.verify(other)

    with_verifier(issuer, use)


def test_tokens_without_number_take_bounded_memory(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "MAX_VERIFIED", 3)

    async def use(verifier: Verifier) -> None:
        for index in range(10):
            assert (await verifier.verify(token(issuer, sub=f"s{index}"))).id == f"oidc:s{index}"
            assert len(verifier._verified) <= 3

    with_verifier(issuer, use)


def test_an_issuer_that_is_away_stops_nobody_whose_key_is_known(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "REFRESH_FLOOR_S", 0.0)
    monkeypatch.setattr(oidc, "KEYS_FRESH_S", 0.0)

    async def use(verifier: Verifier) -> None:
        assert await verifier.verify(token(issuer))
        issuer.fails = True
        for _ in range(5):
            assert await verifier.verify(token(issuer))
            await asyncio.sleep(0.02)

    with_verifier(issuer, use)
    assert len(issuer.asked) > 2


def test_an_issuer_that_never_answered_is_not_the_callers_fault(issuer: Issuer) -> None:
    issuer.fails = True
    with pytest.raises(Refused) as refused:
        verify(issuer, token(issuer))
    assert refused.value.reason == "issuer-unavailable"


def test_discovery_that_speaks_for_someone_else_is_not_believed(issuer: Issuer) -> None:
    issuer.said_issuer = "https://elsewhere"
    with pytest.raises(Refused) as refused:
        verify(issuer, token(issuer))
    assert refused.value.reason == "issuer-unavailable"
    assert issuer.key_requests == 0
