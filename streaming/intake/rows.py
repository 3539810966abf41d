"""One row of a table becomes a chat, or one line of an order. Pure: no file, no Kafka."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec

from streaming.errors import InvalidEvent
from streaming.events.types import Chat, Currency, Id, Limits, Line, Status
from streaming.events.wire import epoch_ms
from streaming.intake.mapping import Mapping

T = TypeVar("T", bound=msgspec.Struct)

# pandas turns whole numbers into floats as soon as one of a column is missing.
_WHOLE_FLOAT = re.compile(r"\d+\.0")
# Epoch milliseconds have had 12 digits since 1973, seconds have 10; 8 digits are a date, YYYYMMDD.
_EPOCH_MS = re.compile(r"\d{12,14}")
_EPOCH_S = re.compile(r"\d{9,10}(\.\d+)?")
# An order's lines carry the same minute and order id: most were just read.
_KEPT = 4_096


class Refused(Exception):
    """A row that can't become an event. `reason` counts alike cases; `detail` adds what was expected."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class OrderKey(msgspec.Struct, frozen=True):
    """What lines of the same order share."""

    order_id: Id
    customer_id: Id
    currency: Currency
    status: Status


class OrderLine(NamedTuple):
    order: OrderKey
    ts: int  # epoch ms
    line: Line


def order_line_reader(mapping: Mapping, limits: Limits, now_ms: int) -> Callable[[int, Sequence[Any]], OrderLine]:
    """From a line number and a row's values, in the order of `mapping.columns`, to the line; it raises Refused."""
    fields = tuple(mapping.columns)
    read_time = _time_reader(mapping, limits, now_ms)

    @lru_cache(_KEPT)
    def order_key(order_id: str, customer_id: str, currency: str, status: str) -> OrderKey:
        return _valid(OrderKey, order_id=order_id, customer_id=customer_id, currency=currency, status=status)

    def read(number: int, values: Sequence[Any]) -> OrderLine:
        row = mapping.constants | dict(zip(fields, values, strict=True))
        order_id, customer_id = _text(row["order_id"]), _identifier(row["customer_id"])
        if not customer_id:
            raise Refused("no customer")
        if not order_id:
            raise Refused("no order id")
        status = _text(row.get("status")).lower() or "placed"
        if mapping.cancel_prefix and order_id.startswith(mapping.cancel_prefix):
            status = "cancelled"
        quantity, price = _number(row["quantity"], "quantity"), _number(row["unit_price"], "price")
        if status != "placed":
            quantity = abs(quantity)  # the status gives the sign
        if quantity <= 0:
            raise Refused("quantity not above zero", "an order that is placed has quantities above zero")
        if price < 0:
            raise Refused("negative price")
        ts = read_time(row["ts"])
        line = _valid(
            Line,
            sku=_sku(_text(row["sku"])),
            description=_text(row.get("description")),
            quantity=quantity,
            unit_price=price,
            category=_text(row.get("category")) or None,
        )
        return OrderLine(order_key(order_id, customer_id, _text(row["currency"]).upper(), status), ts, line)

    return read


def chat_reader(mapping: Mapping, limits: Limits, now_ms: int) -> Callable[[int, Sequence[Any]], Chat]:
    """From a line number and a row's values, in the order of `mapping.columns`, to the chat; it raises Refused.

    Without a column of event ids the id is a digest of the content, so that sending a file again
    repeats its events; where all rows share one time, the line number tells equal texts apart.
    """
    fields = tuple(mapping.columns)
    read_time = _time_reader(mapping, limits, now_ms)

    def read(number: int, values: Sequence[Any]) -> Chat:
        row = mapping.constants | dict(zip(fields, values, strict=True))
        customer_id, text = _identifier(row["customer_id"]), _text(row["text"])
        if not customer_id:
            raise Refused("no customer")
        if not text:
            raise Refused("no text")
        ts = read_time(row["ts"])
        role = _text(row.get("role")).lower() or "customer"
        content = [customer_id, ts, role, text, number if "ts" in mapping.constants else 0]
        return _valid(
            Chat,
            event_id=_text(row.get("event_id")) or digest(msgspec.json.encode(content)),
            customer_id=customer_id,
            ts=ts,
            text=text,
            lang=_text(row.get("lang")) or None,
            channel=_text(row.get("channel")) or None,
            role=role,
        )

    return read


def digest(content: bytes, size: int = 8) -> str:
    """Hex of `size` bytes of the content's BLAKE2b."""
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def _valid(kind: type[T], **values: Any) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        expected, _, path = str(error).partition(" - at `$.")
        raise Refused(f"bad {path.rstrip('`') or kind.__name__.lower()}", expected) from None


def _text(value: Any) -> str:
    if type(value) is str:
        return value.strip()
    if value is None or value != value:  # NaN, as pandas writes what is missing
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _identifier(value: Any) -> str:
    text = _text(value)
    return text[:-2] if _WHOLE_FLOAT.fullmatch(text) else text


@lru_cache(_KEPT)
def _sku(text: str) -> str:
    try:
        return msgspec.convert(text, Id)  # `Line` leaves the characters to `decode`
    except msgspec.ValidationError as error:
        raise Refused("bad sku", str(error)) from None


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Refused(f"bad {name}", "a number such as 12 or 2.55 was expected") from None
    if not -1e15 < number < 1e15:  # also catches NaN
        raise Refused(f"bad {name}", "a finite number was expected")
    return number


def _time_reader(mapping: Mapping, limits: Limits, now_ms: int) -> Callable[[Any], int]:
    """From a cell to epoch ms: ISO 8601, epoch ms or s, a datetime, or the preset's own format.

    A time without an offset is one of `mapping.zone`.
    """
    expected = "ISO 8601 such as 2011-09-30 17:20 or 2011-09-30T17:20:00Z, or epoch milliseconds, was expected"

    def in_ms(moment: datetime) -> int:
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=mapping.zone)
        return round(moment.timestamp() * 1000)

    def parse(text: str) -> int:
        if _EPOCH_MS.fullmatch(text):
            return int(text)
        if _EPOCH_S.fullmatch(text):
            return round(float(text) * 1000)
        try:
            return in_ms(datetime.fromisoformat(text))
        except ValueError:
            if not mapping.date_format:
                raise
            return in_ms(datetime.strptime(text, mapping.date_format))

    @lru_cache(_KEPT)
    def from_text(text: str) -> int:
        return epoch_ms(parse(text), limits, now_ms)

    def read(value: Any) -> int:
        try:
            if isinstance(value, datetime):
                return epoch_ms(in_ms(value), limits, now_ms)
            return from_text(_text(value))
        except (ValueError, OverflowError):
            raise Refused("bad date", expected) from None
        except InvalidEvent as error:
            raise Refused("bad date", error.detail) from None

    return read
