"""Receipts of erasures: what was removed where, signed, and without the id of whom they speak."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from streaming.errors import LimnerError, SettingsError
from streaming.settings import Settings

KEY_FILE = "receipt.key"
_KEY_BYTES = 32
_SHORTEST = 16  # characters of a key that someone chose: 128 bits, if they are hex


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Where something stays for a while, and until when."""

    place: str
    until: int | None
    """Epoch ms; None: not known, or never (`why` says)."""
    why: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """One erasure that was carried out."""

    customer: str
    """`profiles.keys.erased_name`: who has the id can work it out; the receipt does not tell the id."""
    erased_at: int
    """Events up to this time are erased, epoch ms."""
    done_at: int
    by: str
    removed: dict[str, int]
    """Place -> how much of it was removed."""
    kept: list[Kept]
    models: list[str]
    """Versions that were trained on this customer's labels."""
    key: str = ""
    """The first digits of the signing key's hash."""
    signature: str = ""
    """HMAC-SHA-256 over the JSON of the rest (RFC 2104)."""


def sign(receipt: Receipt, key: bytes) -> Receipt:
    named = msgspec.structs.replace(receipt, key=_name(key), signature="")
    return msgspec.structs.replace(named, signature=_signature(named, key))


def check(receipt: Receipt, key: bytes) -> None:
    """
    Raises:
        LimnerError: it was changed after it was signed, or signed with another key.
    """
    if receipt.key != _name(key):
        raise LimnerError(
            f"the receipt was signed with key {receipt.key}, this is {_name(key)}: set LIMNER_RECEIPT_KEY to one key "
            "on all machines"
        )
    if not hmac.compare_digest(_signature(receipt, key), receipt.signature):
        raise LimnerError("the receipt's signature does not fit: it was changed after it was signed")


def signing_key(settings: Settings) -> bytes:
    """The setting's, or this machine's own, made on first use.

    Raises:
        SettingsError: it is too short to protect anything, or its file can't be made.
    """
    told = settings.receipt_key.get_secret_value()
    if told:
        if len(told) < _SHORTEST:
            raise SettingsError(f"receipt_key (LIMNER_RECEIPT_KEY) must have at least {_SHORTEST} characters")
        return told.encode()
    path = Path(settings.cache_dir) / KEY_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".receipt-") as written:  # for its owner alone
                written.write(secrets.token_hex(_KEY_BYTES).encode())
                written.flush()
                with suppress(FileExistsError):  # another process was quicker: its key it is
                    os.link(written.name, path)
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} can't be made ({error.strerror}): set LIMNER_RECEIPT_KEY") from None


def _signature(receipt: Receipt, key: bytes) -> str:
    unsigned = msgspec.structs.replace(receipt, signature="")
    return hmac.new(key, msgspec.json.encode(unsigned), hashlib.sha256).hexdigest()


def _name(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]
