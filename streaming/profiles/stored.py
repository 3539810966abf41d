"""A stored profile as fields, as `schema` gives them: what `view` shows and `fold` adds up. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import msgspec

from streaming.errors import LimnerError
from streaming.profiles.schema import PRODUCT_FIELDS, PROFILE_VERSION, blob, unpack

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


class StoredSource(msgspec.Struct):
    n: int
    t: int
    l: dict[str, list[int | float | str]] = {}  # noqa: E741  the stored name; msgspec copies the default


class StoredOrders(msgspec.Struct):
    n: int = 0
    c: int = 0
    r: int = 0
    a: int | None = None
    z: int | None = None
    q: float = 0.0
    k: int = 0
    m: dict[str, tuple[int, int, int]] = {}
    p: str = ""


class StoredProduct(msgspec.Struct, gc=False):
    sku: str
    orders: int
    quantity: float
    ts: int
    description: str


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
    version = _VERSION.decode(raw).v  # first: a newer profile need not have the shape below
    if version > PROFILE_VERSION:
        raise ProfileUnreadable(
            f"the profile has schema version {version}, this limner reads up to {PROFILE_VERSION}: upgrade limner"
        )
    return msgspec.convert(unpack(raw), Stored)


@contextmanager
def naming_damage() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ProfileUnreadable(f"the stored profile is damaged ({error}): rebuild it from the topics") from None


# (source, half_life_ms, sum) of each source, newest evidence first
Evidence = list[tuple[str, float, Sum]]
ByLabel = dict[tuple[str, str], Evidence]


def by_label(content: Stored) -> ByLabel:
    """Evidence by (facet, label), sources that agree on the time in order of their name: however the
    store orders its maps, sums come out the same to the last bit."""
    evidence: ByLabel = {}
    for source in sorted(content.s):
        for facet, flat in content.s[source].l.items():
            half_life_ms = float(flat[0])
            for label, packed in zip(flat[1::2], flat[2::2], strict=True):
                entry = (source, half_life_ms, _SUM.decode(blob(packed)))  # type: ignore[arg-type]  # a str, or damage
                name = (facet, label)
                found = evidence.get(name)  # type: ignore[arg-type]
                if found is None:
                    evidence[name] = [entry]  # type: ignore[index]
                else:
                    found.append(entry)
                    found.sort(key=newest_first)
    return evidence


def newest_first(entry: tuple[str, float, Sum]) -> int:
    return -entry[2].t


def products(content: Stored) -> list[StoredProduct]:
    flat = unpack(blob(content.o.p)) if content.o and content.o.p else []
    found = []
    for at in range(0, len(flat), PRODUCT_FIELDS):
        sku, orders, rest = flat[at : at + PRODUCT_FIELDS]
        it = _REST.decode(blob(rest))
        found.append(StoredProduct(sku=sku, orders=orders, quantity=it.quantity, ts=it.ts, description=it.description))
    return found
