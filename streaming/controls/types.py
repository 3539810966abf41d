"""The shapes of controls, as they stand on the topic in JSON; its record keys are `record_key`."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, get_args

import msgspec

from streaming.events.types import Id

Purpose = Literal["analytics", "personalisation", "ads", "training"]
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)

By = Annotated[str, msgspec.Meta(max_length=128)]


class _Control(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    event_id: Id
    ts: int
    """Epoch milliseconds; the latest control of a kind decides."""
    by: By = ""
    """Who asked for it, for people to read."""


class _OfCustomer(_Control, frozen=True, kw_only=True):
    customer_id: Id


class _Link(_OfCustomer, frozen=True, kw_only=True):
    other: Id


class Alias(_Link, frozen=True, kw_only=True, tag="alias"):
    """`customer_id` and `other` are one person: a producer says so (an anonymous visitor who logged in)."""


class Merge(_Link, frozen=True, kw_only=True, tag="merge"):
    """The same, said by a person."""


class Unmerge(_Link, frozen=True, kw_only=True, tag="unmerge"):
    """They are not."""


class Consent(_OfCustomer, frozen=True, kw_only=True, tag="consent"):
    """What the customer grants (true) and denies, by purpose; purposes not named stay as they were."""

    purposes: Annotated[dict[Purpose, bool], msgspec.Meta(min_length=1)]


class Block(_OfCustomer, frozen=True, kw_only=True, tag="block"):
    """Several people share this id (a tablet in a shop): its links are not followed."""


class Unblock(_OfCustomer, frozen=True, kw_only=True, tag="unblock"):
    """They are again."""


class Erase(_OfCustomer, frozen=True, kw_only=True, tag="erase"):
    """Forget everything of events up to `ts`."""


class Erased(_Control, frozen=True, kw_only=True, tag="erased"):
    """What is left of an `erase` that was carried out: enough to keep old events out of a rebuilt store."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{4}:[0-9a-f]{32}$(?!\n)")]
    """`profiles.keys.erased_name` of the customer."""


Control = Alias | Merge | Unmerge | Consent | Block | Unblock | Erase | Erased

# Ids that mean nobody: what a program writes where it has no id. Links to them would make one person of strangers.
NOBODY = frozenset(
    {"null", "undefined", "none", "nil", "nan", "n/a", "na", "0", "-1", "-", "anonymous", "anon", "guest", "unknown",
     "not set", "(not set)", "00000000-0000-0000-0000-000000000000"}
)  # fmt: skip


def is_nobody(customer_id: str) -> bool:
    """Whether an id stands for no customer at all; blanks and case don't matter."""
    bare = customer_id.strip().casefold()
    return not bare or bare in NOBODY


def owner(control: Control) -> str:
    """The customer that a control is about, or what is left of the name."""
    return control.name if isinstance(control, Erased) else control.customer_id


def record_key(control: Control) -> bytes:
    """The key of a control's record: `customer_id \\n event_id`.

    The topic is compacted and keeps the last record of a key, so each control must have a key of its own, or a
    later one would push an earlier one of another kind out.
    """
    return f"{owner(control)}\n{control.event_id}".encode()


def tie(event_id: str) -> str:
    """Which of two controls of one millisecond counts as the later: the greater of these.

    A hash, so that an event id, which may hold a customer's, is not kept in another's profile.
    """
    return hashlib.sha256(event_id.encode()).hexdigest()[:16]


def encode(control: Control) -> bytes:
    """A control's record value."""
    return msgspec.json.encode(control)
