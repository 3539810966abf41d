"""What each route does: a function of the service and the request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import prometheus_client
from blacksheep import Content, Request, Response

from streaming.access import audit
from streaming.access.callers import caller_of
from streaming.client import audience, calls, tokens
from streaming.client.aio_reader import AsyncReader
from streaming.client.errors import InvalidArgument
from streaming.client.explain import Explanation, explain
from streaming.controls.consent import allowed, require
from streaming.controls.types import Purpose
from streaming.errors import BrokerUnavailable, StoreUnavailable
from streaming.intake.async_send import AsyncSender
from streaming.lookup import changes, select, shapes
from streaming.lookup.accept import take
from streaming.lookup.asked import body, decoded, path_id
from streaming.lookup.ingest import Intake, taken
from streaming.lookup.media import encode, given_codec
from streaming.lookup.notices import Notices
from streaming.lookup.problems import ProblemError, decode_query
from streaming.lookup.rank import rank
from streaming.lookup.rendered import Rendering, Renderings
from streaming.lookup.reply import codec_for, encoded, known_tags, reply, tag_of, unchanged
from streaming.lookup.tick import SharedReader
from streaming.profiles import fold
from streaming.profiles.keys import audience_key, profile_key
from streaming.profiles.view import Profile
from streaming.settings import Settings

# Profiles of a batch that are read in one go: 2 ms, in which no other look-up is answered.
BATCH_SLICE = 25


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers share."""

    settings: Settings
    openapi: bytes
    store: AsyncReader
    reader: SharedReader
    renderings: Renderings
    facets: select.Facets
    notices: Notices
    streams: changes.Streams
    sender: AsyncSender
    intake: Intake

    @classmethod
    def open(cls, settings: Settings, stopping: asyncio.Event, openapi: bytes) -> Service:
        """Connects when the first request needs it."""
        timeout_s = settings.store_timeout_s
        # Without second attempts: a caller over HTTP has its own, and is told to wait before it makes them.
        options = calls.options(settings.redis, settings.namespace, timeout_s, timeout_s, 0, 0, (), 0)
        store = AsyncReader(options)
        notices, sender = Notices(store), AsyncSender(settings)
        return cls(
            settings=settings,
            openapi=openapi,
            store=store,
            reader=SharedReader(store, settings.namespace),
            renderings=Renderings(),
            facets=select.Facets(store, settings.namespace),
            notices=notices,
            streams=changes.Streams(notices, stopping),
            sender=sender,
            intake=Intake(sender),
        )

    async def close(self) -> None:
        await self.notices.close()
        self.sender.close()
        await self.store.close()


# --- look-ups ---------------------------------------------------------------------------------------


async def get_profile(service: Service, request: Request) -> Response:
    query = decode_query(request.query, shapes.ProfileQuery)
    customer_id = path_id(request, "id")
    fields = await _fields(service, query.fields)
    token = None if query.at_least is None else tokens.decode(query.at_least, "at_least")
    if token is not None:
        if token.customer_id != customer_id and token.customer_id not in await service.reader.read_person(customer_id):
            raise InvalidArgument("at_least", "is of an event of another customer")
        await service.reader.wait_for(token, query.wait_ms / 1000)
    known = await service.reader.read_person(customer_id)
    now_ms = calls.now_ms()
    profile = None  # made when it is needed: most answers are known by their tag or rendered already
    if query.purpose is not None and (profile := fold.fold(customer_id, known, now_ms)):
        require(profile, query.purpose, service.settings.consent)
    tag, tags = tag_of(known.values(), now_ms), known_tags(request)
    if tag in tags:
        return unchanged(tag)
    key = (customer_id, codec_for(request), query.fields)
    stored = known[customer_id] if len(known) == 1 else None  # of linked ids nothing is kept
    rendering = service.renderings.get(key, stored, now_ms)
    if rendering is None:
        profile = profile or fold.fold(customer_id, known, now_ms)
        if profile is None:
            raise _unknown(customer_id)
        shown = profile if fields is None else select.select(profile, fields)
        rendering = Rendering(stored or b"", encode(shown, key[1]), shown if _is_sensitive(service, shown) else None)
        service.renderings.keep(key, rendering, now_ms)
    if b"*" in tags:
        return unchanged(tag)
    if rendering.sensitive is not None:
        _record(service, request, rendering.sensitive)
    return await encoded(request, rendering.body, key[1], tag=tag)


async def get_profiles(service: Service, request: Request) -> Response:
    wanted = await decoded(request, shapes.BatchRequest, service.settings)
    fields = None if wanted.fields is None else frozenset(wanted.fields)
    await service.facets.check(fields or ())
    known = await service.reader.read_people(wanted.ids)
    now_ms = calls.now_ms()
    found: dict[str, Profile | None] = {}
    for index, customer_id in enumerate(wanted.ids):
        if index % BATCH_SLICE == BATCH_SLICE - 1:
            await asyncio.sleep(0)  # let the look-ups of others pass
        found[customer_id] = fold.fold(customer_id, known, now_ms)
    denied = _denied(service, found, wanted.purpose)
    found |= dict.fromkeys(denied)
    if fields is None:
        _record(service, request, *filter(None, found.values()))
        return await reply(request, shapes.BatchFound(found, denied))
    selected = {id_: select.select(profile, fields) if profile else None for id_, profile in found.items()}
    _record(service, request, *filter(None, selected.values()))
    return await reply(request, shapes.BatchSelected(selected, denied))


async def get_explanation(service: Service, request: Request) -> Response:
    decode_query(request.query, shapes.NoQuery)
    customer_id = path_id(request, "id")
    stored = await service.reader.read(customer_id)
    if stored is None:
        raise _unknown(customer_id)
    explanation = explain(stored, calls.now_ms())
    _record(service, request, explanation)
    return await reply(request, explanation)


async def get_audience(service: Service, request: Request) -> Response:
    query = decode_query(request.query, shapes.AudienceQuery)
    page = await _page(service, request, query.limit, query.min_strength, query.cursor)
    _record_audience(service, request, page.facet, page.label)
    return await reply(request, page)


async def post_rank(service: Service, request: Request) -> Response:
    wanted = await decoded(request, shapes.RankRequest, service.settings)
    known = await service.reader.read_person(wanted.customer_id)
    profile = fold.fold(wanted.customer_id, known, calls.now_ms())
    if profile is None:
        raise _unknown(wanted.customer_id, "customer_id")
    if wanted.purpose is not None:
        require(profile, wanted.purpose, service.settings.consent)
    ranking = rank(profile, wanted)
    _record(service, request, profile)
    return await reply(request, ranking)


# --- streams of changes -----------------------------------------------------------------------------


async def get_profile_changes(service: Service, request: Request) -> Response:
    query = decode_query(request.query, shapes.FieldsQuery)
    customer_id = path_id(request, "id")
    fields = await _fields(service, query.fields)
    sent = request.get_first_header(b"last-event-id") or b""  # what a client that comes back had seen

    async def current() -> tuple[bytes, list[bytes]]:
        nonlocal sent
        known = await service.reader.read_person(customer_id)
        keys = [profile_key(service.settings.namespace, member) for member in known]
        now_ms = calls.now_ms()
        profile = fold.fold(customer_id, known, now_ms)
        tag = tag_of(known.values(), now_ms).strip(b'W/"') if profile else b"none"
        if tag == sent or (profile is None and not sent):
            return b"", keys
        sent = tag
        if profile is None:
            return changes.sse("erased", {"customer_id": customer_id}, tag), keys
        shown = profile if fields is None else select.select(profile, fields)
        _record(service, request, shown)
        return changes.sse("profile", shown, tag), keys

    return service.streams.response(request, "/v1/profiles/{id}/changes", current)


async def get_audience_changes(service: Service, request: Request) -> Response:
    query = decode_query(request.query, shapes.WatchQuery)
    first = await _page(service, request, query.limit, query.min_strength)
    facet, label = first.facet, first.label
    _record_audience(service, request, facet, label)
    keys = [audience_key(service.settings.namespace, facet, label)]
    known: set[str] | None = None

    async def current() -> tuple[bytes, list[bytes]]:
        nonlocal known
        page = await _page(service, request, query.limit, query.min_strength)
        members = {member.customer_id for member in page.members}
        if members == known:
            return b"", keys
        before, known = known or set(), members
        entered = [member for member in page.members if member.customer_id not in before]
        change = shapes.AudienceChange(facet, label, entered, sorted(before - members))
        return changes.sse("audience", change), keys

    return service.streams.response(request, "/v1/audiences/{facet}/{label}/changes", current)


# --- events -----------------------------------------------------------------------------------------


async def post_events(service: Service, request: Request) -> Response:
    service.intake.check_room()  # before the body takes memory
    codec = given_codec(request.content_type())
    good = take(await body(request, service.settings), codec, service.settings)
    if not good.messages:
        first = good.results[0]
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid-events",
            f"event 0: {first.reason}: {first.detail}",
            results=good.results,
        )
    places = await service.intake.send(good.messages)
    return await reply(request, taken(good.results, good.customers, places), HTTPStatus.ACCEPTED)


# --- what an operator asks --------------------------------------------------------------------------


async def get_health(service: Service, request: Request) -> Response:
    return await reply(request, shapes.Status("alive"))


async def get_ready(service: Service, request: Request) -> Response:
    answers = await asyncio.gather(_ping(service), service.sender.check(), return_exceptions=True)
    failed = {name: answer for name, answer in zip(("redis", "kafka"), answers, strict=True) if answer is not None}
    for error in failed.values():
        if not isinstance(error, StoreUnavailable | BrokerUnavailable):
            raise error
    if failed:
        raise ProblemError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not-ready",
            "; ".join(map(str, failed.values())),
            missing=list(failed),
        )
    return await reply(request, shapes.Status("ready"))


async def get_metrics(service: Service, request: Request) -> Response:
    return Response(
        200, None, Content(prometheus_client.CONTENT_TYPE_LATEST.encode(), prometheus_client.generate_latest())
    )


async def get_openapi(service: Service, request: Request) -> Response:
    return Response(200, None, Content(b"application/json", service.openapi))


# --- what they have in common -----------------------------------------------------------------------


def _unknown(customer_id: str, field: str = "id") -> ProblemError:
    return ProblemError(
        HTTPStatus.NOT_FOUND,
        "unknown-customer",
        f"no event of customer {customer_id!r} has been merged",
        field=field,
    )


def _denied(service: Service, found: Mapping[str, Profile | None], purpose: Purpose | None) -> list[str]:
    if purpose is None:
        return []
    defaults = service.settings.consent
    return [id_ for id_, profile in found.items() if profile and not allowed(profile, purpose, defaults)]


async def _fields(service: Service, given: str | None) -> frozenset[str] | None:
    fields = select.split(given)
    if fields is not None:
        await service.facets.check(fields)
    return fields


async def _page(
    service: Service, request: Request, limit: int, min_strength: float, cursor: str | None = None
) -> shapes.Audience:
    facet, label = path_id(request, "facet"), path_id(request, "label")
    asked = audience.query(facet, label, limit, min_strength, cursor)
    commands = audience.commands(service.settings.namespace, asked)
    half_life, members = await service.store.read(lambda server, within_s: server.ask(*commands, within_s=within_s))
    page = audience.read(asked, half_life, members, calls.now_ms())
    return shapes.Audience(facet, label, [shapes.Member(*member) for member in page], page.cursor)


async def _ping(service: Service) -> None:
    await service.store.read(lambda server, within_s: server.ask(("PING",), within_s=within_s))


def _is_sensitive(service: Service, shown: Profile | shapes.SelectedProfile) -> bool:
    sensitive = service.settings.sensitive_facets
    return any(label.facet in sensitive for label in shown.labels or ())


def _record(service: Service, request: Request, *shown: Profile | shapes.SelectedProfile | Explanation) -> None:
    """For the audit: who is shown labels of sensitive facets."""
    with_labels = cast("list[Profile]", [it for it in shown if it.labels])  # as far as the audit looks, all alike
    audit.read(service.settings, caller_of(request), with_labels)


def _record_audience(service: Service, request: Request, facet: str, label: str) -> None:
    if facet in service.settings.sensitive_facets:
        audit.record(service.settings, caller_of(request), "read-audience", facet=facet, label=label)
