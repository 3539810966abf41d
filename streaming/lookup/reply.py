"""Answers: encoded as the request asks, compressed where it pays, with an entity tag where they have one."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

import zstandard
from blacksheep import Content, Request, Response

from streaming.events.wire import Codec
from streaming.lookup.media import MEDIA_TYPE, Coding, accepted_codec, accepted_coding, encode

Headers = list[tuple[bytes, bytes]]

# Measured with profiles of 3 KB to callers on one machine: compressing them costs this process a tenth (zstd) to a
# sixth (gzip) of its requests/s and saves 2 KB, which most networks carry in less time. From the 10 packets of TCP's
# initial window on, a body takes more round trips than one, and compressing saves those.
COMPRESS_FROM = 14_600
# gzip takes half a millisecond for 100 KB: beyond, other look-ups would wait for it, so a thread does it.
IN_THREAD_FROM = 100_000
# Levels of speed: the next ones save a tenth of the size for three times the time.
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 1
_GZIP_WINDOW = 31  # zlib's way to say: with a gzip header, the largest window

# Strengths fall while the stored profile stays as it is. Within five minutes a label whose half-life is a day falls
# by less than 0.002: such answers count as equivalent, which is what a weak entity tag says.
TAG_MS = 300_000

_VARY = (b"Vary", b"Accept, Accept-Encoding")
# Profiles are personal and change at any moment: who keeps one asks each time whether it is still the same.
_REVALIDATE = (b"Cache-Control", b"private, no-cache")


async def reply(request: Request, value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """`value` as the request wants it."""
    codec = codec_for(request)
    return await encoded(request, encode(value, codec), codec, status)


def codec_for(request: Request) -> Codec:
    return accepted_codec(request.get_first_header(b"accept"))


async def encoded(
    request: Request, body: bytes, codec: Codec, status: HTTPStatus = HTTPStatus.OK, tag: bytes | None = None
) -> Response:
    """A body in its encoding."""
    headers: Headers = [_VARY]
    if tag is not None:
        headers += ((b"ETag", tag), _REVALIDATE)
    if len(body) >= COMPRESS_FROM and (coding := accepted_coding(request.get_first_header(b"accept-encoding"))):
        squeeze = partial(compress, body, coding)
        body = squeeze() if len(body) < IN_THREAD_FROM else await asyncio.to_thread(squeeze)
        headers.append((b"Content-Encoding", coding.encode()))
    return Response(status.value, headers, Content(MEDIA_TYPE[codec], body))


def unchanged(tag: bytes) -> Response:
    return Response(HTTPStatus.NOT_MODIFIED.value, [(b"ETag", tag), _VARY, _REVALIDATE])


def compress(body: bytes, coding: Coding) -> bytes:
    if coding == "gzip":
        return zlib.compress(body, _GZIP_LEVEL, _GZIP_WINDOW)
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)


def tag_of(stored: Iterable[bytes | None], now_ms: int) -> bytes:
    """The weak entity tag of a profile read now from what is stored under all ids of a person."""
    content = b"".join(filter(None, stored))
    digest = hashlib.blake2b(content, digest_size=9, salt=(now_ms // TAG_MS).to_bytes(8)).hexdigest()
    return b'W/"%b"' % digest.encode()


def known_tags(request: Request) -> frozenset[bytes]:
    """What If-None-Match names, as weak tags (RFC 9110, 13.1.2: weak comparison); `*` stands for any."""
    known = request.get_first_header(b"if-none-match")
    if known is None:
        return frozenset()
    bare = (one.strip().removeprefix(b"W/") for one in known.split(b","))
    return frozenset(one if one == b"*" else b"W/" + one for one in bare)
