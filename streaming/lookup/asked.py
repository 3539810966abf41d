"""What a request asks: path, query and body, checked."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeVar

from blacksheep import Request

from streaming.client.calls import checked_id
from streaming.lookup.media import given_codec
from streaming.lookup.problems import ProblemError, decode_body, decode_query
from streaming.lookup.shapes import NoQuery
from streaming.settings import Settings

# 1,000 events of 4 KB.
MAX_BODY_BYTES = 4 << 20

T = TypeVar("T")


def path_id(request: Request, name: str) -> str:
    """A part of the path, percent-decoded; BlackSheep has matched the route, so it is there.

    Raises:
        InvalidArgument: it can't be an id.
    """
    return checked_id((request.route_values or {})[name], name)


async def decoded(request: Request, shape: type[T], settings: Settings) -> T:
    """The body, as its content type says.

    Raises:
        ProblemError: as `decode_body` and `body`.
    """
    codec = given_codec(request.content_type())
    return decode_body(await body(request, settings), shape, codec)


async def body(request: Request, settings: Settings) -> bytes:
    """
    Raises:
        ProblemError: 413 beyond `MAX_BODY_BYTES`; 415 for a compressed one, 400 for query parameters.
    """
    decode_query(request.query, NoQuery)
    if request.get_first_header(b"content-encoding") not in (None, b"identity"):
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "the body must not be compressed",
            field="Content-Encoding",
        )
    limit = max(MAX_BODY_BYTES, settings.max_record_bytes)
    read = bytearray()
    async for chunk in request.stream():  # type: ignore[attr-defined]  # the stub forgets that it is a generator
        read += chunk
        if len(read) > limit:
            raise ProblemError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large", f"the body may have up to {limit:,} bytes"
            )
    return bytes(read)
