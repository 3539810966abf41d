"""CloudEvents 1.0 over Kafka: what the headers say, and events wrapped in JSON, one or a batch.

After "CloudEvents - Version 1.0.2", its "Kafka Protocol Binding" and its "JSON Event Format". Only what
limner uses is asked for: `source` and `type` may be absent.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from streaming.errors import InvalidEvent
from streaming.events.wire import NO_ATTRIBUTES, Attributes, Codec, Items, reader

Form = Literal["plain", "structured", "batch"]

_FORMS: dict[str, Form] = {
    "application/cloudevents+json": "structured",
    "application/cloudevents-batch+json": "batch",
}
_MSGPACK = ("application/msgpack", "application/x-msgpack")


class Opened(NamedTuple):
    """The data of an event and how to read it."""

    data: bytes | msgspec.Raw
    codec: Codec
    around: Attributes


class _Structured(msgspec.Struct, frozen=True):
    specversion: str
    id: str | None = None
    time: str | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: bytes | None = None


_read_structured = reader(_Structured)
_read_batch = reader(Items)


def form_of(headers: tuple[tuple[str, bytes], ...]) -> tuple[Form, Codec, Attributes]:
    """How a record's value is written, and the attributes of binary mode.

    Raises:
        InvalidEvent: the headers say a version or format of CloudEvents that limner can't read.
    """
    if not headers:
        return "plain", "json", NO_ATTRIBUTES
    # Of a repeated header the last counts, as in Kafka's own `lastHeader`. A value may be null.
    found = {name.lower(): value or b"" for name, value in headers}
    media_type = _media_type(found.get("content-type", b"").decode(errors="replace"))
    if media_type.startswith("application/cloudevents"):
        if media_type not in _FORMS:
            raise InvalidEvent("undecodable", f"content-type: Expected one of {', '.join(_FORMS)}")
        return _FORMS[media_type], "json", NO_ATTRIBUTES
    around = _binary_mode(found) if "ce_specversion" in found else NO_ATTRIBUTES
    return "plain", _codec(media_type), around


def unwrap(body: bytes | msgspec.Raw) -> Opened:
    """The event within one of structured mode.

    Raises:
        InvalidEvent: it is not JSON, of another version, or without data.
    """
    event = _read_structured(body, "json")
    _check_version(event.specversion)
    around = Attributes(event.id, event.subject, event.time)
    if isinstance(event.data, msgspec.Raw):
        if event.data_base64 is not None:
            raise InvalidEvent("invalid", "data: Expected either data or data_base64")
        return Opened(event.data, "json", around)
    if event.data_base64 is None:
        raise InvalidEvent("invalid", "Object missing required field `data` or `data_base64`")
    return Opened(event.data_base64, _codec(_media_type(event.datacontenttype or "")), around)


def unbatch(body: bytes) -> list[msgspec.Raw]:
    """The events of batch mode, each for `unwrap`. Raises InvalidEvent."""
    return _read_batch(body, "json")


def _binary_mode(headers: dict[str, bytes]) -> Attributes:
    values = {}
    for name in ("ce_specversion", "ce_id", "ce_subject", "ce_time"):
        try:
            values[name] = headers[name].decode() if name in headers else None
        except UnicodeDecodeError:
            raise InvalidEvent("invalid", f"header {name}: Expected UTF-8") from None
    _check_version(values["ce_specversion"])
    return Attributes(values["ce_id"], values["ce_subject"], values["ce_time"])


def _check_version(specversion: str | None) -> None:
    if specversion != "1.0":
        raise InvalidEvent("invalid", "specversion: Expected 1.0")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _codec(media_type: str) -> Codec:
    return "msgpack" if media_type in _MSGPACK else "json"
