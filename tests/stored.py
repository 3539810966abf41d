"""Profiles as `merge.lua` leaves them in the store, written down in the form of `schema.unfold`."""

from __future__ import annotations

from typing import Any

from streaming.profiles.schema import PROFILE_VERSION, pack


def folded(unfolded: dict[str, Any]) -> bytes:
    """The bytes of which `schema.unfold` makes `unfolded`."""
    content = {**unfolded, "s": {name: _source(source) for name, source in unfolded["s"].items()}}
    if products := unfolded.get("o", {}).get("p"):
        flat = [field for sku, (orders, *rest) in products.items() for field in (sku, orders, pack(rest))]
        content["o"] = {**unfolded["o"], "p": pack(flat)}
    return pack(content)


def _source(source: dict[str, Any]) -> dict[str, Any]:
    facets = {
        facet: [half_life, *(field for label, (*sum_, ids) in labels.items()
                             for field in (label, pack([*sum_, "\n".join(ids)])))]
        for facet, (half_life, labels) in source.get("l", {}).items()
    }  # fmt: skip
    return {**source, "l": facets} if facets else source


def profile(customer_id: str, updated_ms: int, sources: dict[str, Any], **more: Any) -> bytes:
    """A stored profile of this schema version."""
    head = {"v": PROFILE_VERSION, "id": customer_id, "u": updated_ms, "f": {"t/0/e": 7}}
    return folded({**head, "s": sources, **more})
