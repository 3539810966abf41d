"""Who read what is sensitive, and who erased whom: one JSON line each, to the log or to a file of its own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from streaming import logs
from streaming.access.callers import Caller
from streaming.errors import LimnerError
from streaming.profiles.keys import erased_name
from streaming.profiles.view import Profile
from streaming.settings import Settings

_log = logs.get("limner.audit")
logging.getLogger("limner.audit").setLevel(logging.INFO)  # whatever `log_level` says of other loggers


class AuditFailed(LimnerError):
    """The line can't be written: what it would have recorded must not happen."""


def record(
    settings: Settings, caller: Caller, action: str, customer_ids: Sequence[str] = (), **details: str | int | list[str]
) -> None:
    """One line: the time, who, what, whom. Call it before the answer leaves, or before the deed is done.

    Args:
        action: such as `read` or `erase`.
        customer_ids: told by a hash, which stays the same for a customer: HMAC-SHA-256 with `audit_hash_key` (128
            bits in hex) where it is set, else the name that stands on receipts of erasures, `erased_name`.
        details: of the deed; never a customer's text.

    Raises:
        AuditFailed
    """
    line: dict[str, object] = {"caller": caller.id, "namespace": settings.namespace}
    if customer_ids:
        line["customers"] = [pseudonym(settings, customer_id) for customer_id in customer_ids]
    line |= details
    if settings.audit_file is None:
        _log.info(action, **line)
    else:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        _append(settings.audit_file, msgspec.json.encode({"timestamp": at, "event": action, **line}) + b"\n")


def read(settings: Settings, caller: Caller, profiles: Iterable[Profile]) -> None:
    """Record that `profiles` are shown to `caller`, as far as they hold labels of sensitive facets.

    Raises:
        AuditFailed
    """
    sensitive = frozenset(settings.sensitive_facets)
    if not sensitive:
        return
    customer_ids: list[str] = []
    facets: set[str] = set()
    for profile in profiles:
        if shown := sensitive.intersection(label.facet for label in profile.labels):
            customer_ids.append(profile.customer_id)
            facets |= shown
    if customer_ids:
        record(settings, caller, "read", customer_ids, facets=sorted(facets))


def pseudonym(settings: Settings, customer_id: str) -> str:
    """How audit lines name a customer."""
    key = settings.audit_hash_key.get_secret_value()
    if not key:
        return erased_name(customer_id)
    return hmac.new(key.encode(), customer_id.encode(), hashlib.sha256).hexdigest()[:32]


def _append(path: Path, line: bytes) -> None:
    # Opened for each line, which takes 20 µs: a file that was moved away to be kept is made anew, and with O_APPEND
    # several processes may write to one file without mixing their lines.
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise AuditFailed(f"audit_file {path} can't be written: {error.strerror}") from None
    if written != len(line):
        raise AuditFailed(f"audit_file {path} can't be written: no room")
