"""Bytes into checked fields: one way to read, and to say what is wrong, for every format."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar, cast, get_args

import msgspec

from streaming.errors import InvalidEvent
from streaming.events.types import Id, Limits, Role, Status

Codec = Literal["json", "msgpack"]

# RFC 3339 (or msgpack's timestamp), or epoch milliseconds. A time without an offset could be any of 26 hours.
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Time = int | Instant

# A thousand chats or orders are about what a record of Kafka's default 1 MB holds.
MAX_ITEMS = 1_000
Items = Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]

# Epoch seconds stay below this until the year 5138; epoch milliseconds have been above since 1973.
_LOOKS_LIKE_SECONDS = 10**11
# Before the first web shop: a default (1970, 1980) or a mistake.
_EARLIEST_MS = round(datetime(1990, 1, 1, tzinfo=UTC).timestamp() * 1000)

# What a value would have to be where msgspec's own message quotes the value that it is.
_ALLOWED = {"status": get_args(Status), "role": get_args(Role)}
_LOCATED = re.compile(r"(.*) - at `(.*)`", re.DOTALL)

# Like `types.Id`; and an id that was damaged on the way could be that of two customers.
_NOT_IN_IDS = re.compile(r"[\x00-\x1f\x7f{}\ufffd]")
# A surrogate pair, the lone half of one, or any other escape of JSON.
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stands around an event and fills the fields that it lacks: CloudEvents' id, subject and time."""

    event_id: str | None = None
    customer_id: str | None = None
    ts: str | None = None


NO_ATTRIBUTES = Attributes()


def reader(kind: type[T]) -> Callable[[bytes | msgspec.Raw, Codec], T]:
    """A function that reads `kind` from JSON or msgpack and raises InvalidEvent on anything else."""
    decoders = {"json": msgspec.json.Decoder(kind).decode, "msgpack": msgspec.msgpack.Decoder(kind).decode}

    def read(body: bytes | msgspec.Raw, codec: Codec) -> T:
        try:
            return decoders[codec](body)
        except msgspec.ValidationError as error:
            raise InvalidEvent("invalid", _located(error)) from None
        except UnicodeDecodeError:  # its message quotes the bytes
            raise InvalidEvent("undecodable", "a string is not UTF-8") from None
        except RecursionError:
            raise InvalidEvent("undecodable", "nested too deep: expected a few levels of objects and arrays") from None
        except msgspec.DecodeError as error:
            mended = _without_lone_surrogates(bytes(body)) if codec == "json" else body
            if mended != body:
                return read(mended, codec)
            raise InvalidEvent("undecodable", f"expected {codec}: {error}") from None

    return read


def epoch_ms(ts: Time, limits: Limits, now_ms: int) -> int:
    """The event time, checked.

    Raises:
        InvalidEvent: "future" if it is too far ahead, "invalid" if it can't be an event's.
    """
    ms = ts if isinstance(ts, int) else round(ts.timestamp() * 1000)
    if ms > now_ms + limits.max_future_ms:
        raise InvalidEvent("future", f"ts: more than {limits.max_future_ms} ms ahead of the clock")
    if ms < _EARLIEST_MS:
        if isinstance(ts, int) and 0 <= ms < _LOOKS_LIKE_SECONDS:
            raise InvalidEvent("invalid", "ts: looks like seconds, expected epoch milliseconds or RFC 3339")
        raise InvalidEvent("invalid", "ts: before 1990")
    return ms


def check_ids(fields: tuple[str, ...], *values: str) -> None:
    """Raise InvalidEvent if one of these has a character that ids can't have."""
    if _NOT_IN_IDS.search("".join(values)):
        field = next(field for field, value in zip(fields, values, strict=True) if _NOT_IN_IDS.search(value))
        raise InvalidEvent("invalid", f"{field}: Expected no control characters, braces or U+FFFD")


def fill_id(field: str, attribute: str | None) -> str:
    """An id that the event itself lacks."""
    return _from_attribute(field, attribute, str, Id)


def fill_time(field: str, attribute: str | None) -> Time:
    return _from_attribute(field, attribute, datetime, Instant)


def _from_attribute(field: str, attribute: str | None, kind: type[T], constraints: object) -> T:
    if attribute is None:
        raise InvalidEvent("invalid", f"Object missing required field `{field}`")
    try:
        return cast(T, msgspec.convert(attribute, constraints))
    except msgspec.ValidationError as error:
        raise InvalidEvent("invalid", f"{field} (from the CloudEvent): {error}") from None


def _located(error: msgspec.ValidationError) -> str:
    """msgspec's message as "field: what was expected", without the value that came."""
    match = _LOCATED.fullmatch(str(error))
    if match is None:
        return str(error)
    what, path = match.groups()
    field = path.replace("`", "").removeprefix("$").removeprefix(".")
    if what.startswith("Invalid enum value"):
        what = f"Expected one of {', '.join(_ALLOWED[field.rpartition('.')[2]])}"
    return f"{field}: {what}"


def _without_lone_surrogates(body: bytes) -> bytes:
    """Halves of surrogate pairs replaced: JavaScript writes one where it cut a text within an emoji."""
    return _ESCAPES.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)
