"""What is told of a customer and not by one: identity, consent, erasure. Each goes to Kafka as a control, which a
worker carries out; the answer comes when Kafka has it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from blacksheep import Request, Response

from streaming.access import audit
from streaming.access.callers import caller_of
from streaming.client import calls
from streaming.client.errors import InvalidArgument
from streaming.controls.consent import allowed
from streaming.controls.export import export
from streaming.controls.receipts import Receipt
from streaming.controls.send import message, new_id
from streaming.controls.store import ControlStore
from streaming.controls.types import (
    PURPOSES,
    Block,
    Consent,
    Control,
    Erase,
    Merge,
    Unblock,
    Unmerge,
    is_nobody,
)
from streaming.lookup import shapes
from streaming.lookup.asked import decoded, path_id
from streaming.lookup.handlers import Service
from streaming.lookup.problems import decode_query
from streaming.lookup.reply import reply
from streaming.profiles import fold
from streaming.profiles.keys import erased_name
from streaming.profiles.view import Profile


async def delete_profile(service: Service, request: Request) -> Response:
    customer_id = _asked(request)
    audit.record(service.settings, caller_of(request), "erase", [customer_id])
    return await _send(service, request, Erase(**_of(request, customer_id)))


async def get_erasures(service: Service, request: Request) -> Response:
    customer_id = _asked(request)
    async with ControlStore.open(service.settings) as store:
        found = await store.receipts(erased_name(customer_id))
    return await reply(request, shapes.Erasures([msgspec.json.decode(raw, type=Receipt) for raw in found]))


async def put_link(service: Service, request: Request) -> Response:
    customer_id, other = _ends(request)
    return await _send(service, request, Merge(**_of(request, customer_id), other=other))


async def delete_link(service: Service, request: Request) -> Response:
    customer_id, other = _ends(request)
    return await _send(service, request, Unmerge(**_of(request, customer_id), other=other))


async def put_block(service: Service, request: Request) -> Response:
    return await _send(service, request, Block(**_of(request, _person(request, "id"))))


async def delete_block(service: Service, request: Request) -> Response:
    return await _send(service, request, Unblock(**_of(request, _person(request, "id"))))


async def put_consent(service: Service, request: Request) -> Response:
    customer_id = _person(request, "id")
    said = await decoded(request, shapes.ConsentRequest, service.settings)
    return await _send(service, request, Consent(**_of(request, customer_id), purposes=said.purposes))


async def get_consent(service: Service, request: Request) -> Response:
    """Of a customer who is not known, too: what counts is the default."""
    customer_id = _asked(request)
    known, now_ms = await service.reader.read_person(customer_id), calls.now_ms()
    profile = fold.fold(customer_id, known, now_ms)
    if profile is None and (stored := known[customer_id]) is not None:  # one of whom only consent is known
        profile = Profile.from_bytes(stored, now_ms)
    defaults = service.settings.consent
    granted = {purpose: allowed(profile, purpose, defaults) for purpose in PURPOSES}
    return await reply(request, shapes.ConsentFound(customer_id, granted, dict(profile.consent) if profile else {}))


async def get_export(service: Service, request: Request) -> Response:
    customer_id = _asked(request)
    audit.record(service.settings, caller_of(request), "export", [customer_id])
    async with ControlStore.open(service.settings) as store:
        return await reply(request, await export(service.settings, store, customer_id, calls.now_ms()))


def _asked(request: Request) -> str:
    decode_query(request.query, shapes.NoQuery)
    return path_id(request, "id")


def _person(request: Request, name: str) -> str:
    found = path_id(request, name)
    if is_nobody(found):
        raise InvalidArgument(name, f"{found!r} stands for nobody: it is no customer's id")
    return found


def _ends(request: Request) -> tuple[str, str]:
    decode_query(request.query, shapes.NoQuery)
    customer_id, other = _person(request, "id"), _person(request, "other")
    if customer_id == other:
        raise InvalidArgument("other", "must be another id")
    return customer_id, other


def _of(request: Request, customer_id: str) -> dict[str, Any]:
    return {"event_id": new_id(), "ts": calls.now_ms(), "customer_id": customer_id, "by": caller_of(request).id[:128]}


async def _send(service: Service, request: Request, control: Control) -> Response:
    await service.sender.send([message(service.settings, control)])
    return await reply(request, shapes.Ordered(control.event_id, control.ts), HTTPStatus.ACCEPTED)
