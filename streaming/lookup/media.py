"""What a request's headers ask for: JSON or msgpack, gzip or zstd. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from streaming.events.wire import Codec
from streaming.lookup.problems import ProblemError

JSON, MSGPACK = b"application/json", b"application/msgpack"
# The last two are older names, which clients still send.
_CODECS: dict[bytes, Codec] = {
    JSON: "json",
    MSGPACK: "msgpack",
    b"application/x-msgpack": "msgpack",
    b"application/vnd.msgpack": "msgpack",
}
MEDIA_TYPE: dict[Codec, bytes] = {"json": JSON, "msgpack": MSGPACK}

Coding = Literal["zstd", "gzip"]

# A process meets a few dozen different headers; callers must not be able to fill its memory with more.
_KEPT = 256

ENCODE = {"json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode}


@lru_cache(_KEPT)
def accepted_codec(accept: bytes | None) -> Codec:
    """msgpack for a caller who likes it better than JSON, else JSON, also for one who takes neither
    (RFC 9110, 12.5.1: a server may disregard the field)."""
    if accept is None:
        return "json"
    wishes = list(_wishes(accept))
    json = _liking(wishes, (JSON,), (b"application/*", b"*/*"))
    msgpack = _liking(wishes, [name for name, codec in _CODECS.items() if codec == "msgpack"], ())
    return "msgpack" if msgpack > json else "json"


@lru_cache(_KEPT)
def accepted_coding(accept_encoding: bytes | None) -> Coding | None:
    """zstd where it is liked no less than gzip: it takes half the time for about the same size."""
    if accept_encoding is None:
        return None
    wishes = list(_wishes(accept_encoding))
    zstd, gzip = _liking(wishes, (b"zstd",), ()), _liking(wishes, (b"gzip", b"x-gzip"), (b"*",))
    if max(zstd, gzip) <= 0:
        return None
    return "zstd" if zstd >= gzip else "gzip"


@lru_cache(_KEPT)
def given_codec(content_type: bytes | None) -> Codec:
    """How a body is written, by its content type.

    A web page may send any type but these to this service across origins without asking first; this
    service listens on loopback without a key, where any page in a browser could reach it.

    Raises:
        ProblemError: 415.
    """
    codec = _CODECS.get((content_type or b"").partition(b";")[0].strip().lower())
    if codec is None:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "must be application/json or application/msgpack",
            field="Content-Type",
        )
    return codec


def encode(value: Any, codec: Codec) -> bytes:
    return ENCODE[codec](value)


def _wishes(header: bytes) -> Iterator[tuple[bytes, float]]:
    for part in header.lower().split(b","):
        name, *parameters = (piece.strip() for piece in part.split(b";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith(b"q=")), b"1")
        try:
            yield name, float(quality)
        except ValueError:  # not a number: no wish
            continue


def _liking(wishes: list[tuple[bytes, float]], names: Any, wildcards: tuple[bytes, ...]) -> float:
    """The quality given to the best of `names`; what stands there by name counts before a wildcard."""
    named = [quality for name, quality in wishes if name in names]
    wild = (quality for wildcard in wildcards for name, quality in wishes if name == wildcard)
    return max(named) if named else next(wild, 0.0)
