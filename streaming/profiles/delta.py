"""What a batch adds to customers: built once, published and merged as the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from streaming.events.types import MONEY, Event, Order, Position, Source
from streaming.profiles.schema import DELTA_VERSION, DESCRIPTION_CHARS, ORDER_PRODUCTS, pack, ring_id, unpack


class LabelRef(Protocol):
    """A label of the packs in force; `model.LabelRef` is one."""

    @property
    def facet(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def half_life_ms(self) -> int: ...


Key = tuple[str, str, int, str]  # customer_id, topic, partition, epoch

# Entries, pieces of evidence and order lines in one delta: at about 60 bytes each, a quarter of Kafka's 1 MB.
MAX_WEIGHT = 4_096

# pairs of index into the engine's label_refs and probability
Evidence = Sequence[tuple[int, float]]


class Scored(NamedTuple):
    """An event with what the model says of it. `texts` are scrubbed: of an order placed, one a line;
    otherwise the chat's, or none."""

    position: Position
    event: Event
    texts: Sequence[str]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Delta:
    """`data` is the delta of schema.py; the rest of the fields repeat what the edges need of it."""

    customer_id: str
    labels: tuple[tuple[str, str, int], ...]  # facet, label, half-life in ms, in the order of the delta's `l`
    positions: tuple[Position, ...]  # of the records that it holds, in order
    data: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Delta:
        """A delta as it was published, for replay."""
        content = unpack(data)
        topic, partition, epoch = content["f"].rsplit("/", 2)
        positions = tuple(Position(topic, int(partition), epoch, entry[0]) for entry in content["e"])
        return cls(content["id"], tuple(map(tuple, content["l"])), positions, data)


def holds_before(data: bytes, erased_at: int) -> bool:
    """Whether a published delta holds an event of up to `erased_at`, epoch ms."""
    return any(entry[3] <= erased_at for entry in unpack(data)["e"])


def build(
    scored: Iterable[Scored],
    source: Source,
    label_refs: Sequence[LabelRef],
    model_version: str,
    now_ms: int,
) -> list[Delta]:
    """Group events by customer and partition, in order of offset within each."""
    groups: dict[Key, list[Scored]] = {}
    for item in scored:
        position = item.position
        key = (item.event.customer_id, position.topic, position.partition, position.epoch)
        groups.setdefault(key, []).append(item)
    deltas = []
    for (customer_id, topic, partition, epoch), items in _bounded(groups):
        local: dict[int, int] = {}
        entries: list[list[Any]] = []
        for position, event, texts, evidence in items:
            flat: list[int | float] = []
            for index, probability in evidence:
                flat += (local.setdefault(index, len(local)), probability)
            entry = [position.offset, event.event_id, ring_id(event.event_id), event.ts, flat]
            if isinstance(event, Order):
                entry.append(_order_part(event, texts))
            entries.append(entry)
        labels = tuple((label_refs[i].facet, label_refs[i].label, label_refs[i].half_life_ms) for i in local)
        content = {
            "v": DELTA_VERSION,
            "id": customer_id,
            "src": source,
            "f": f"{topic}/{partition}/{epoch}",
            "mv": model_version,
            "at": now_ms,
            "l": labels,
            "e": entries,
        }
        positions = tuple(dict.fromkeys(item.position for item in items))
        deltas.append(Delta(customer_id, labels, positions, pack(content)))
    return deltas


def _bounded(groups: dict[Key, list[Scored]]) -> Iterator[tuple[Key, list[Scored]]]:
    """Cut a customer's part where it would outgrow a Kafka record, but never within one offset: the first
    piece would move the fence over the rest."""
    for key, items in groups.items():
        piece: list[Scored] = []
        weight = 0
        for item in items:
            weight += 1 + len(item.evidence) + (len(item.event.lines) if isinstance(item.event, Order) else 0)
            if weight > MAX_WEIGHT and piece and piece[-1].position != item.position:
                yield key, piece
                piece, weight = [], 0
            piece.append(item)
        yield key, piece


def _order_part(order: Order, descriptions: Sequence[str]) -> list[Any]:
    value = 0
    items = 0.0
    bought: dict[str, list[Any]] = {}  # sku -> what goes into the delta, and what was spent on it
    for line, description in zip(order.lines, descriptions or repeat(""), strict=False):
        quantity = line.quantity
        of_line = round(quantity * line.unit_price * MONEY)
        value += of_line
        items += quantity
        product = bought.get(line.sku)
        if product is None:
            bought[line.sku] = [[line.sku, quantity, description[:DESCRIPTION_CHARS]], of_line]
        else:
            product[0][1] += quantity
            product[1] += of_line
    products = list(bought.values()) if descriptions else []  # no texts: not placed, nothing bought
    if len(products) > ORDER_PRODUCTS:
        dearest = sorted(products, key=_spent, reverse=True)[:ORDER_PRODUCTS]
        least = dearest[-1][1]
        products = [it for it in products if it[1] > least or it in dearest]
    return [order.status, order.currency, value, items, len(order.lines), [product for product, _ in products]]


_spent = itemgetter(1)
