"""What a URL names: one server, the Sentinels that watch some, or a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url
from redis.backoff import NoBackoff
from redis.retry import Retry

from streaming.client.errors import InvalidArgument

REDIS_PORT = 6379
SENTINEL_PORT = 26379

# A client's calls wait for nothing but the server; so many connections to one node at once mean that it is lost.
MAX_CONNECTIONS = 10_000

_FORMS = (
    "must be redis://HOST[:PORT][/DB], rediss://... (TLS), unix://PATH, "
    "redis+sentinel://HOST[:PORT],.../SERVICE[/DB] or redis+cluster://HOST[:PORT], each with USER:PASSWORD@ "
    "before the host if need be, percent-encoded"
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to read. `url` is one that redis-py knows: of the server, of any node of the cluster, or, with a host
    that means nothing, of what Sentinel leads to. `where` is for messages: no user and no password."""

    kind: Literal["server", "sentinel", "cluster"]
    url: str
    where: str
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""


def parse(url: str, field: str) -> Target:
    """Raises:
    InvalidArgument: the URL is of none of the forms; `field` is what the error calls it.
    """
    try:
        scheme, plus, kind = urlsplit(url).scheme.partition("+")
        plain = url.replace(plus + kind, "", 1)
        match kind:
            case "":
                parse_url(url)
                return Target("server", url, _where(url))
            case "cluster":
                if parse_url(plain).get("db"):
                    raise InvalidArgument(field, "a cluster has database 0 alone")
                return Target("cluster", plain, _where(plain))
            case "sentinel":
                return _sentinel(plain, scheme)
    except (ValueError, TypeError, AttributeError):  # their words may quote the password; the last two: no text
        pass
    raise InvalidArgument(field, _FORMS)


def _where(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or REDIS_PORT}" if parts.hostname else parts.path


def _sentinel(url: str, scheme: str) -> Target:
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.lstrip("/").partition("/")
    if not hosts or not service:
        raise ValueError(url)
    query = f"?{parts.query}" if parts.query else ""
    data_url = f"{scheme}://{userinfo}{at}unused/{int(db or 0)}{query}"
    parse_url(data_url)
    sentinels = []
    for host in hosts.split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError(host)
        sentinels.append((one.hostname, one.port or SENTINEL_PORT))
    where = ",".join(f"{host}:{port}" for host, port in sentinels)
    return Target("sentinel", data_url, f"{where}/{service}", tuple(sentinels), service)


def patience(timeout_s: float | None) -> dict[str, Any]:
    """redis-py's arguments about waiting. No attempts of its own: `calls.retry_pause` decides."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }


def behind_sentinel(target: Target) -> dict[str, Any]:
    """redis-py's arguments of a pool of connections to what Sentinel leads to."""
    arguments: dict[str, Any] = {**parse_url(target.url), "ssl": target.url.startswith("rediss")}
    del arguments["host"]
    arguments.pop("connection_class", None)  # the pool has its own
    return arguments
