"""A stored profile as fields, as `schema` gives them: what `view` shows and `fold` adds up. Pure."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec

from streaming.errors import LimnerError
from streaming.profiles.schema import PRODUCT_FIELDS, PROFILE_VERSION

Register = tuple[bool, int, str]  # value, ts, tie


class ProfileUnreadable(LimnerError):
    """A stored profile is damaged, or was written by a newer limner than this one."""


class Sum(msgspec.Struct, gc=False, array_like=True):
    """Evidence of one source for one label."""

    w: float
    t: int
    n: int
    model: str
    ids: str


# Raw below: lists of strings that are msgpacks again and so no text; `_unpack` reads them.
class StoredSource(msgspec.Struct):
    n: int
    t: int
    l: dict[str, msgspec.Raw] = {}  # noqa: E741  the stored name; msgspec copies the default


class StoredOrders(msgspec.Struct):
    n: int = 0
    c: int = 0
    r: int = 0
    a: int | None = None
    z: int | None = None
    q: float = 0.0
    k: int = 0
    m: dict[str, tuple[int, int, int]] = {}
    p: msgspec.Raw = msgspec.Raw()


# `view` shows it as it is: a profile has up to 16, each of them one object fewer.
class Product(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    sku: str
    description: str
    orders: int
    """Orders with it. May overstate for a product that displaced another (Space-Saving)."""
    quantity: float
    last_ts: int
    """Epoch ms."""


class Stored(msgspec.Struct):
    v: int
    id: str
    u: int = 0
    f: dict[str, int] = {}
    s: dict[str, StoredSource] = {}
    o: StoredOrders | None = None
    c: dict[str, Register] = {}
    i: dict[str, Register] = {}
    e: dict[str, int] = {}


class _Version(msgspec.Struct):
    v: int


class _Rest(msgspec.Struct, gc=False, array_like=True):
    quantity: float
    ts: int
    description: str


_STORED = msgspec.msgpack.Decoder(Stored)
_VERSION = msgspec.msgpack.Decoder(_Version)
_SUM = msgspec.msgpack.Decoder(Sum)
_REST = msgspec.msgpack.Decoder(_Rest)

# What reading raises on bytes that are no profile.
_DAMAGE = (
    msgspec.DecodeError,
    msgpack.UnpackException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


def decode(raw: bytes) -> Stored:
    """Raises ProfileUnreadable for a newer schema; wrap it in `naming_damage` for damaged bytes."""
    try:
        content = _STORED.decode(raw)
    except msgspec.DecodeError:
        _refuse_newer(_VERSION.decode(raw).v)  # a newer one need not have this shape
        raise
    _refuse_newer(content.v)
    return content


def _refuse_newer(version: int) -> None:
    if version > PROFILE_VERSION:
        raise ProfileUnreadable(
            f"the profile has schema version {version}, this limner reads up to {PROFILE_VERSION}: upgrade limner"
        )


class naming_damage:
    """A context that turns what damaged bytes raise into ProfileUnreadable. A class, since every look-up enters it:
    contextlib's generator takes three times as long."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, _DAMAGE):
            raise ProfileUnreadable(f"the stored profile is damaged ({error}): rebuild it from the topics") from None


def _unpack(packed: msgspec.Raw | bytes) -> Any:
    """What is packed, with strings left as bytes."""
    return msgpack.unpackb(packed, raw=True)


# (source, half_life_ms, sum) of each source, newest evidence first
Evidence = list[tuple[str, float, Sum]]
ByLabel = dict[tuple[str, str], Evidence]


def by_label(content: Stored) -> ByLabel:
    """Evidence by (facet, label), sources that agree on the time in order of their name: however the
    store orders its maps, sums come out the same to the last bit."""
    evidence: ByLabel = {}
    for source in sorted(content.s):
        for facet, labels in content.s[source].l.items():
            flat = iter(_unpack(labels))
            half_life_ms = float(next(flat, ""))
            for label, packed in zip(flat, flat, strict=True):
                entry = (source, half_life_ms, _SUM.decode(packed))
                name = (facet, label.decode())
                found = evidence.get(name)
                if found is None:
                    evidence[name] = [entry]
                else:
                    found.append(entry)
                    found.sort(key=newest_first)
    return evidence


def newest_first(entry: tuple[str, float, Sum]) -> int:
    return -entry[2].t


def products(content: Stored) -> list[Product]:
    if content.o is None or not content.o.p:
        return []
    flat = iter(_unpack(_unpack(content.o.p)))
    found = []
    for sku, orders, packed in zip(*[flat] * PRODUCT_FIELDS, strict=True):
        it = _REST.decode(packed)
        found.append(
            Product(sku=sku.decode(), description=it.description, orders=orders, quantity=it.quantity, last_ts=it.ts)
        )
    return found
