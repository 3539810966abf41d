"""Read your writes: where an event stands in Kafka, as a text to hand around, and whether a profile holds it. Pure.

Who sends an event learns its partition and offset (`POST /v1/events` answers with the token). A profile's fence
names, per partition, the highest record of this customer that was merged: once it reaches the token's offset, the
profile holds the event.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Annotated

import msgspec

from streaming.client.errors import InvalidArgument
from streaming.events.types import Id
from streaming.profiles import view

# Kafka's own rule for a topic's name.
_Topic = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,249}$(?!\n)")]
_Partition = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Offset = Annotated[int, msgspec.Meta(ge=0)]


class Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """One event of one customer, by its place in Kafka. The tag is the format's version."""

    customer_id: Id
    topic: _Topic
    partition: _Partition
    offset: _Offset


_DECODER = msgspec.msgpack.Decoder(Token)


def encode(token: Token) -> str:
    """The token as URL-safe text: letters, digits, `-` and `_`; at most 900 characters, mostly 40 to 60."""
    return urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=").decode()


def decode(text: str, field: str = "token") -> Token:
    """What `encode` made a text of; `field` is what an error calls it.

    Raises:
        InvalidArgument: it is no token, or not whole.
    """
    try:
        raw = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        token = _DECODER.decode(raw)
    except (binascii.Error, ValueError, TypeError, msgspec.DecodeError):  # ValueError: letters that are not ASCII
        token = None
    if token is None or encode(token) != text:
        raise InvalidArgument(field, "is not a token that POST /v1/events gave: pass it on whole and unchanged")
    return token


def holds(profile: bytes | Mapping[str, int], token: Token) -> bool:
    """Whether a profile, as stored bytes or as its fence ("topic/partition/epoch" -> offset), holds the event.

    Of several incarnations of the topic, the one that came furthest counts: epochs have no order, and a token
    none. After a topic was deleted and created again, a token of the new one may so count as held too early,
    until it has passed the old one's length.

    Raises:
        ProfileUnreadable: as `Profile.from_bytes`.
    """
    fence = view.fence(profile) if isinstance(profile, bytes) else profile
    prefix = f"{token.topic}/{token.partition}/"
    return any(offset >= token.offset for name, offset in fence.items() if name.startswith(prefix))
