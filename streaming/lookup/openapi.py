"""The OpenAPI 3.1 document, made of the routes and of the msgspec types that check and answer requests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import msgspec

from streaming.events.types import Chat, Id, Order
from streaming.lookup.accept import MAX_EVENTS
from streaming.lookup.routes import ROUTES, Route
from streaming.lookup.shapes import Problem

_REF = "#/components/schemas/{name}"
_TIME = {
    "description": "RFC 3339, or milliseconds since the Unix epoch",
    "oneOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}],
}


def document() -> dict[str, Any]:
    types: list[Any] = [Problem, Chat, Order]
    types += [shape for route in ROUTES for shape in (route.answer, route.body) if _is_type(shape)]
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


def _is_type(shape: Any) -> bool:
    return shape is not None and not isinstance(shape, str)


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
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "responses": {str(route.status.value): {"description": route.summary, "content": _content(route.answer)}},
    }
    if parameters := [*_path_parameters(route.path), *_query_parameters(route.query)]:
        operation["parameters"] = parameters
    if route.body is not None:
        shape = {"$ref": _REF.format(name="Events")} if route.body == "events" else _ref(route.body)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": shape}}}
    problems = {status.value: words for status, words in route.problems.items()}
    if route.protected:
        operation["security"] = [{"key": []}, {}]
        problems[401] = "The key is missing or wrong"
    for status, words in sorted(problems.items()):
        answer: dict[str, Any] = {
            "description": words,
            "content": {"application/problem+json": {"schema": _ref(Problem)}},
        }
        if status == 503:
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
        operation["responses"][str(status)] = answer
    return operation


def _ref(shape: type[Any]) -> dict[str, Any]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _content(answer: Any) -> dict[str, Any]:
    if isinstance(answer, str):
        return {answer: {"schema": {"type": "object" if answer == "application/json" else "string"}}}
    return {"application/json": {"schema": _ref(answer)}}


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(Id)}


def _query_parameters(query: type[Any] | None) -> Iterable[dict[str, Any]]:
    if query is None:
        return
    properties = msgspec.json.schema(query)["$defs"][query.__name__]["properties"]
    for name, schema in properties.items():
        words = schema.pop("description")
        yield {"name": name, "in": "query", "description": words, "schema": schema}
