"""The OpenAPI 3.1 document, made of the routes and of the msgspec types that check and answer requests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, get_args

import msgspec

from streaming.events.types import Chat, Id, Order
from streaming.lookup.accept import MAX_EVENTS
from streaming.lookup.media import MEDIA_TYPE
from streaming.lookup.routes import ROUTES, Route
from streaming.lookup.shapes import Problem

_REF = "#/components/schemas/{name}"
_TIME = {
    "description": "RFC 3339, or milliseconds since the Unix epoch",
    # milliseconds from 1990 on; who sends seconds is refused
    "oneOf": [{"type": "string", "format": "date-time"}, {"type": "integer", "minimum": 631_152_000_000}],
}


def document() -> dict[str, Any]:
    types: list[Any] = [Problem, Chat, Order]
    types += [shape for route in ROUTES for shape in (*_types(route.answer), *_types(route.body))]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    for kind in ("Chat", "Order"):
        properties = components[kind]["properties"]
        properties["ts"] = _TIME
        properties["kind"] = {"const": kind.lower(), "description": "may be left out: `text` or `lines` tells"}
    components["Events"] = _events()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "limner",
            "version": version("limner"),
            "description": "Live customer profiles: look-ups, audiences, and intake of events.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "The setting api_key, where one is set"}
            },
        },
    }


def _types(shape: Any) -> tuple[type[Any], ...]:
    """The msgspec types that a route's answer or body may be of."""
    if shape is None or isinstance(shape, str):
        return ()
    return get_args(shape) or (shape,)


def _events() -> dict[str, Any]:
    event = {"oneOf": [{"$ref": _REF.format(name=name)} for name in ("Chat", "Order")]}
    return {
        "oneOf": [
            *event["oneOf"],
            {
                "type": "object",
                "required": ["events"],
                "additionalProperties": False,
                "properties": {"events": {"type": "array", "minItems": 1, "maxItems": MAX_EVENTS, "items": event}},
            },
        ]
    }


def _operation(route: Route) -> dict[str, Any]:
    good: dict[str, Any] = {"description": route.summary, "content": _content(route.answer)}
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "responses": {str(route.status.value): good},
    }
    parameters = [*_path_parameters(route.path), *_query_parameters(route.query)]
    if route.tagged:
        good["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "of the profile within five minutes"}}
        operation["responses"]["304"] = {"description": "The profile is still the one of `If-None-Match`"}
        parameters.append(
            {"name": "If-None-Match", "in": "header", "description": "an ETag", "schema": {"type": "string"}}
        )
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        shape = {"$ref": _REF.format(name="Events")} if route.body == "events" else _ref(route.body)
        operation["requestBody"] = {"required": True, "content": _both(shape)}
    problems = {status.value: words for status, words in route.problems.items()}
    if route.scope is not None:
        operation["security"] = [{"key": []}, {}]
        problems[401] = "The key is missing, wrong or expired"
        problems[403] = problems.get(403) or f"The key lacks the scope {route.scope!r}, or is another namespace's"
        problems[429] = "The caller sends more than its rate"
    for status, words in sorted(problems.items()):
        answer: dict[str, Any] = {
            "description": words,
            "content": {"application/problem+json": {"schema": _ref(Problem)}},
        }
        if status in (429, 503):
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
        operation["responses"][str(status)] = answer
    return operation


def _content(answer: Any) -> dict[str, Any]:
    if isinstance(answer, str):
        return {answer: {"schema": {"type": "object" if answer == "application/json" else "string"}}}
    return _both(_ref(answer))


def _ref(shape: Any) -> dict[str, Any]:
    refs = [{"$ref": _REF.format(name=one.__name__)} for one in _types(shape)]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _both(schema: dict[str, Any]) -> dict[str, Any]:
    return {media_type.decode(): {"schema": schema} for media_type in MEDIA_TYPE.values()}


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(Id)}


def _query_parameters(query: type[Any] | None) -> Iterable[dict[str, Any]]:
    if query is None:
        return
    properties = msgspec.json.schema(query)["$defs"][query.__name__]["properties"]
    for name, schema in properties.items():
        # an optional one is `anyOf` a type and null, which a query can't be
        given = schema.pop("anyOf", [schema])[0]
        words = given.pop("description")
        schema |= given
        yield {"name": name, "in": "query", "description": words, "schema": schema}
