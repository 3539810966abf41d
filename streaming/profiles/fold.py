"""Several ids of one person, read as one. Pure.

Each id keeps the profile of its own events and, in `i`, a register for every id that it was ever linked with. Nothing
is ever added up in the store, so undoing a link leaves nothing to undo; who reads follows the links and adds up:

    known = {asked: raw}
    while missing := fold.missing(asked, known):
        known |= zip(missing, mget(missing))
    profile = fold.fold(asked, known, now_ms)

An id without links has no key `i`, and costs one search for two bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from streaming.profiles import stored, view
from streaming.profiles.schema import PRODUCTS, PROVENANCE
from streaming.profiles.stored import ByLabel, Product, Register, Stored, StoredOrders, StoredSource, Sum

# Ids of one person that a look-up reads at most. A person has a few devices; a wrong link to a shared one must not
# make a look-up read a town.
MAX_CLUSTER = 16

# In `i`, the name of the register that says whether an id is shared by several people.
SHARED = ""

_HAS_LINKS = b"\xa1i"  # the key in msgpack: a string of one character


class _Links(msgspec.Struct):
    id: str
    i: dict[str, Register] = {}
    x: int | None = None


_LINKS = msgspec.msgpack.Decoder(_Links)


def neighbours(raw: bytes) -> list[str]:
    """The ids that a stored profile is linked with now, those linked longest first; none if it is shared.

    Raises:
        ProfileUnreadable
    """
    if _HAS_LINKS not in raw:
        return []
    with stored.naming_damage():
        links = _LINKS.decode(raw).i
    if SHARED in links and links[SHARED][0]:
        return []
    linked = [(ts, tie, other) for other, (value, ts, tie) in links.items() if value and other != SHARED]
    return [other for _, _, other in sorted(linked)]


def linked_ever(raw: bytes) -> list[str]:
    """Every id that a stored profile has a register for, linked now or not."""
    with stored.naming_damage():
        return sorted(other for other in _LINKS.decode(raw).i if other != SHARED)


def link_time(raw: bytes, other: str) -> float:
    """When the link of a stored profile with `other` was last said or unsaid, epoch ms; never: infinity."""
    with stored.naming_damage():
        links = _LINKS.decode(raw).i
    return links[other][1] if other in links else math.inf


def erased_until(raw: bytes) -> int | None:
    """The erasure (event time, epoch ms) after which a stored profile began; None if there was none."""
    with stored.naming_damage():
        return _LINKS.decode(raw).x


def is_shared(raw: bytes) -> bool:
    """Whether the id is shared by several people (control `block`)."""
    with stored.naming_damage():
        return _HAS_LINKS in raw and _LINKS.decode(raw).i.get(SHARED, (False, 0, ""))[0]


def missing(asked: str, known: Mapping[str, bytes | None]) -> list[str]:
    """The ids whose stored profiles are needed next; empty when `known` has all of them.

    Args:
        known: id -> its stored profile, None where there is none; `asked` among them.
    """
    return [member for member in _walk(asked, known) if member not in known]


def fold(asked: str, known: Mapping[str, bytes | None], at_ms: int) -> view.Profile | None:
    """The profile of the person that `asked` belongs to, under that id; None if there is no event of any of the ids.

    What two ids hold of one source and label is added in event time, as one profile adds its events:
    `w = w1 * 2^(-(T - t1) / half_life) + w2 * 2^(-(T - t2) / half_life)` as of `T = max(t1, t2)`.

    Raises:
        ProfileUnreadable
    """
    members = [member for member in _walk(asked, known) if known.get(member) is not None]
    with stored.naming_damage():
        contents = [stored.decode(known[member] or b"") for member in sorted(members)]
        linked = [member for member in members if member != asked]
        if not any(content.s for content in contents):
            return None
        if len(contents) == 1:
            (only,) = contents
            return view.read(asked, only, stored.by_label(only), stored.products(only), at_ms, linked)
        return view.read(asked, _join(contents), _evidence(contents), _products(contents), at_ms, linked)


def audience_scores(raw: bytes) -> dict[tuple[str, str], float]:
    """(facet, label) -> A, as merges write it into audiences (see `keys.audience_key`).

    Raises:
        ProfileUnreadable
    """
    with stored.naming_damage():
        scores = {}
        for name, found in stored.by_label(stored.decode(raw)).items():
            _, half_life_ms, newest = found[0]
            total = sum(it.w * 2.0 ** ((it.t - newest.t) / half_life_ms) for _, _, it in found)
            if total > 0:
                scores[name] = math.log2(total) + newest.t / half_life_ms
        return scores


def _walk(asked: str, known: Mapping[str, bytes | None]) -> list[str]:
    """The ids of a person as far as they are known, and the next ones beyond: breadth first, oldest links first,
    MAX_CLUSTER at most. An id that is shared is not walked into."""
    members, frontier = [asked], [asked]
    while frontier:
        beyond: list[str] = []
        for member in frontier:
            raw = known.get(member)
            if raw is None:
                continue
            for other in neighbours(raw):
                if len(members) == MAX_CLUSTER:
                    return members
                found = known.get(other)
                if other not in members and not (found is not None and is_shared(found)):
                    members.append(other)
                    beyond.append(other)
        frontier = beyond
    return members


def _join(contents: list[Stored]) -> Stored:
    newest = max(contents, key=lambda content: content.u)
    sources: dict[str, StoredSource] = {}
    for content in contents:
        for name, it in content.s.items():
            before = sources.get(name)
            sources[name] = StoredSource(before.n + it.n, max(before.t, it.t)) if before else StoredSource(it.n, it.t)
    consent: dict[str, Register] = {}
    for content in contents:
        for purpose, register in content.c.items():
            # Of two words at once, the no.
            consent[purpose] = max(consent.get(purpose, register), register, key=lambda it: (it[1], it[2], not it[0]))
    orders = [content.o for content in contents if content.o]
    return Stored(
        v=max(content.v for content in contents),
        id=newest.id,
        u=newest.u,
        s=sources,
        o=_orders(orders) if orders else None,
        c=consent,
        e=newest.e,
    )


def _orders(found: list[StoredOrders]) -> StoredOrders:
    money: dict[str, tuple[int, int, int]] = {}
    for it in found:
        for currency, (spent, cancelled, returned) in it.m.items():
            before = money.get(currency, (0, 0, 0))
            money[currency] = (before[0] + spent, before[1] + cancelled, before[2] + returned)
    return StoredOrders(
        n=sum(it.n for it in found),
        c=sum(it.c for it in found),
        r=sum(it.r for it in found),
        a=min((it.a for it in found if it.a is not None), default=None),
        z=max((it.z for it in found if it.z is not None), default=None),
        q=math.fsum(it.q for it in found),
        k=sum(it.k for it in found),
        m=money,
    )


def _products(contents: list[Stored]) -> list[Product]:
    joined: dict[str, Product] = {}
    for product in _each_product(contents):
        before = joined.get(product.sku)
        if before is None:
            joined[product.sku] = product
            continue
        newer = product if product.last_ts > before.last_ts else before
        joined[product.sku] = Product(
            sku=product.sku,
            orders=before.orders + product.orders,
            quantity=before.quantity + product.quantity,
            last_ts=newer.last_ts,
            description=newer.description,
        )
    return sorted(joined.values(), key=view.most_bought)[:PRODUCTS]


def _each_product(contents: list[Stored]) -> Iterable[Product]:
    for content in contents:
        yield from stored.products(content)


def _evidence(contents: list[Stored]) -> ByLabel:
    joined: dict[tuple[str, str], dict[str, tuple[float, Sum]]] = {}
    # The half-life of whoever was merged into last is the pack's that is in force.
    for content in sorted(contents, key=lambda content: content.u):
        for name, found in stored.by_label(content).items():
            sums = joined.setdefault(name, {})
            for source, half_life_ms, it in found:
                sums[source] = (half_life_ms, _added(sums[source][1], it, half_life_ms) if source in sums else it)
    return {
        name: sorted(((source, half, it) for source, (half, it) in sorted(sums.items())), key=stored.newest_first)
        for name, sums in joined.items()
    }


def _added(left: Sum, right: Sum, half_life_ms: float) -> Sum:
    older, newer = (left, right) if left.t <= right.t else (right, left)
    ids = [event_id for it in (older, newer) if it.ids for event_id in it.ids.split("\n")]
    return Sum(
        w=newer.w + older.w * 2.0 ** ((older.t - newer.t) / half_life_ms),
        t=newer.t,
        n=left.n + right.n,
        model=newer.model,
        ids="\n".join(ids[-PROVENANCE:]),
    )
