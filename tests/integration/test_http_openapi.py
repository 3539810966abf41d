"""The service answers as its OpenAPI document says, whatever it is sent: Schemathesis makes the requests."""

from __future__ import annotations

from collections.abc import Iterator
from math import log2
from time import time
from typing import Any

import msgpack
import pytest
import redis
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from streaming.embedded.broker import Broker
from streaming.embedded.store import Store
from streaming.lookup.routes import ROUTES, Route
from streaming.profiles.keys import audience_key, half_lives_key, profile_key
from tests.serving import HALF_LIFE, fresh_topics, running, stored

MSGPACK = "application/msgpack"
EXAMPLES = 20  # an operation, right and wrong: 25 s for all

# Every answer as documented: status, content type, headers and body; and no wrong request passes.
CHECKS = (
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
    checks.negative_data_rejection,
)


@schemathesis.serializer(MSGPACK)
def write(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    try:
        return msgpack.packb(value)
    except (OverflowError, UnicodeEncodeError, ValueError, TypeError):  # JSON can write what msgpack can't
        reject()


@schemathesis.deserializer(MSGPACK)
def read(ctx: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgpack.unpackb(response.content)


@pytest.fixture(scope="module")
def document(store: Store, broker: Broker) -> Iterator[Any]:
    now = int(time() * 1000)
    with redis.Redis.from_url(store.url) as client:
        client.flushall()
        client.set(profile_key("lm", "0"), stored("0", now))  # the first id that Hypothesis tries
        client.hset(half_lives_key("lm"), mapping={"0": HALF_LIFE, "interests": HALF_LIFE})
        client.zadd(audience_key("lm", "0", "0"), {"0": log2(2) + now / HALF_LIFE})
    with running(redis=store.url, kafka=broker.bootstrap, **fresh_topics(broker)) as (client, _):
        yield schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


def operations() -> Iterator[Any]:
    for route in ROUTES:
        if route.answer == "text/event-stream":  # it has no end; test_http has its tests
            continue
        yield pytest.param(route, GenerationMode.POSITIVE, id=f"right {route.method} {route.path}")
        if route.body is not None or "{" in route.path:
            yield pytest.param(route, GenerationMode.NEGATIVE, id=f"wrong {route.method} {route.path}")


@pytest.mark.parametrize(("route", "mode"), list(operations()))
def test_answers_are_as_documented(document: Any, route: Route, mode: GenerationMode) -> None:
    requests = document[route.path][route.method].as_strategy(generation_mode=mode)

    @given(case=requests)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # requests are shown as curl commands, readable without minutes of shrinking
        suppress_health_check=list(HealthCheck),
    )
    def answers_as_documented(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=list(CHECKS), timeout=20)

    answers_as_documented()
