"""What a profile must be: slow, plain Python, one event at a time. Written from schema.py's words, not from merge.lua.

It is given each event once; the code under test may see them cut into batches, repeated and restarted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from streaming.events.types import MONEY, Chat, Event, Order
from streaming.profiles import schema
from streaming.profiles.delta import LabelRef, Scored


def profiles(scored: Iterable[Scored], refs: Sequence[LabelRef], model: str) -> dict[str, dict[str, Any]]:
    """Customer -> profile (without the processing time), each event of `scored` applied once, in the order given."""
    result: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, str, str]] = set()
    for position, event, texts, evidence in scored:
        profile = result.setdefault(
            event.customer_id, {"v": schema.PROFILE_VERSION, "id": event.customer_id, "f": {}, "s": {}}
        )
        source = "chat" if isinstance(event, Chat) else "order"
        fence = f"{position.topic}/{position.partition}/{position.epoch}"
        profile["f"][fence] = max(profile["f"].get(fence, -1), position.offset)
        if (event.customer_id, source, event.event_id) in seen:
            continue
        seen.add((event.customer_id, source, event.event_id))
        _apply(profile, source, event, texts, evidence, refs, model)
    return result


def _apply(
    profile: dict[str, Any],
    source: str,
    event: Event,
    texts: Sequence[str],
    evidence: Sequence[tuple[int, float]],
    refs: Sequence[LabelRef],
    model: str,
) -> None:
    state = profile["s"].setdefault(source, {"n": 0, "r": ""})
    state["n"] += 1
    state["t"] = max(state.get("t", event.ts), event.ts)
    state["r"] = (state["r"] + schema.ring_id(event.event_id))[-schema.RING * schema.RING_ID_CHARS :]
    for index, probability in evidence:
        ref = refs[index]
        facet = state.setdefault("l", {}).setdefault(ref.facet, [ref.half_life_ms, {}])
        labels = facet[1]
        if ref.label in labels:
            w, t, n, _, ids = labels[ref.label]
            newest = max(t, event.ts)
            w = w * 2.0 ** ((t - newest) / ref.half_life_ms) + probability * 2.0 ** (
                (event.ts - newest) / ref.half_life_ms
            )
            labels[ref.label] = [w, newest, n + 1, model, [*ids, event.event_id][-schema.PROVENANCE :]]
        else:
            labels[ref.label] = [probability, event.ts, 1, model, [event.event_id]]
            if len(labels) > schema.LABELS_PER_FACET:
                del labels[_weakest(facet)]
    if isinstance(event, Order):
        _apply_order(profile, event, texts)


def _weakest(facet: list[Any]) -> str:
    half_life, labels = facet
    return max(labels, key=lambda name: (-math.log2(labels[name][0]) - labels[name][1] / half_life, name))


def _apply_order(profile: dict[str, Any], order: Order, texts: Sequence[str]) -> None:
    totals = profile.setdefault("o", {"n": 0, "c": 0, "r": 0, "q": 0, "k": 0, "m": {}})
    money = totals["m"].setdefault(order.currency, [0, 0, 0])
    value = sum(round(line.quantity * line.unit_price * MONEY) for line in order.lines)
    if order.status == "cancelled":
        totals["c"] += 1
        money[1] += value
        return
    if order.status == "returned":
        totals["r"] += 1
        money[2] += value
        return
    totals["n"] += 1
    totals["a"] = min(totals.get("a", order.ts), order.ts)
    totals["z"] = max(totals.get("z", order.ts), order.ts)
    totals["q"] += sum(line.quantity for line in order.lines)
    totals["k"] += len(order.lines)
    money[0] += value
    skus = list(dict.fromkeys(line.sku for line in order.lines))

    def spent(sku: str) -> int:
        return sum(round(it.quantity * it.unit_price * MONEY) for it in order.lines if it.sku == sku)

    dearest = sorted(skus, key=spent, reverse=True)[: schema.ORDER_PRODUCTS]
    for sku in (sku for sku in skus if sku in dearest):
        quantity = sum(line.quantity for line in order.lines if line.sku == sku)
        text = next(text for line, text in zip(order.lines, texts, strict=True) if line.sku == sku)
        products = totals.setdefault("p", {})
        text = text[: schema.DESCRIPTION_CHARS]
        if sku in products:
            count, before, newest, first = products[sku]
            products[sku] = [count + 1, before + quantity, max(newest, order.ts), first]
        elif len(products) < schema.PRODUCTS:
            products[sku] = [1, quantity, order.ts, text]
        else:  # in the place of the first of the least
            least = min(products, key=lambda it: products[it][0])
            newcomer = (sku, [products[least][0] + 1, quantity, order.ts, text])
            totals["p"] = dict(newcomer if it == least else (it, products[it]) for it in products)


def difference(left: Any, right: Any, path: str = "") -> str | None:
    """The first place where two unpacked profiles differ by more than 1e-9 (relative, or absolute below 1)."""
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f"{path}: keys {sorted(left)} and {sorted(right)}"
        return next((d for key in left if (d := difference(left[key], right[key], f"{path}/{key}"))), None)
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return f"{path}: {left} and {right}"
        return next((d for i in range(len(left)) if (d := difference(left[i], right[i], f"{path}/{i}"))), None)
    if isinstance(left, float) or isinstance(right, float):
        return None if math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9) else f"{path}: {left} and {right}"
    return None if left == right else f"{path}: {left!r} and {right!r}"
