"""The process that serves: one, with granian's server in it, ended by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import resource
import signal
import socket
import ssl

import uvloop
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from streaming import logs
from streaming.access import edge
from streaming.errors import LimnerError, SettingsError
from streaming.lookup.app import application
from streaming.settings import Settings

# A caller on another continent sends its headers in two round trips; one that takes longer holds a connection for
# nothing. The same holds for a connection that waits for its next request: clients open another.
HEADER_S = 10.0

# Of all headers together. Tokens have a few KB; hyper takes 40 KB with this, and refuses 48 (431).
HEADER_BYTES = 32_768

# Open at once; beyond, callers wait to be accepted. granian's own 128 would let 128 idle ones lock all others out.
CONNECTIONS = 4_096

# Files and connections of the process itself: log, Redis, Kafka.
_OWN_FILES = 128

_log = logs.get(__name__)


def serve(settings: Settings) -> None:
    """Serve HTTP until SIGTERM or SIGINT; requests under way are answered first.

    Raises:
        SettingsError: `http_host` is no address of this machine, or is off loopback without keys; keys or
            certificates can't be read.
        LimnerError: the port is taken.
    """
    _check_certificates(settings)
    host, port = _free_address(settings)
    uvloop.run(_serve(settings, host, port))


async def _serve(settings: Settings, host: str, port: int) -> None:
    connections = _room_for(CONNECTIONS)
    stopping = asyncio.Event()
    server = Server(
        edge.guarded(application(settings, stopping), https=settings.http_cert is not None, body_s=edge.BODY_S),
        host,
        port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=1_024,
        backpressure=connections,
        http1_settings=HTTP1Settings(header_read_timeout=round(HEADER_S * 1000), max_buffer_size=HEADER_BYTES),
        log_enabled=False,  # its log can carry URLs, and so customer ids
        ssl_cert=settings.http_cert,
        ssl_key=settings.http_key,
        ssl_ca=settings.http_client_ca,
        ssl_client_verify=settings.http_client_ca is not None,
        ssl_protocol_min=SSLProtocols.tls12,  # of which rustls has only what is sound (RFC 9325)
    )

    def stop() -> None:
        stopping.set()  # streams have no end of their own, and the server waits for each
        server.stop()  # type: ignore[no-untyped-call]

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    if not (settings.http_cert or ipaddress.ip_address(host).is_loopback):
        _log.warning("callers' keys and profiles travel unencrypted unless a proxy speaks HTTPS: see http_cert")
    scheme = "https" if settings.http_cert else "http"
    _log.info("listening", url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    # What is here now stays. Looking through it for garbage stops all requests for tens of milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    await server.serve()
    _log.info("stopped")


def _room_for(connections: int) -> int:
    """How many connections this process may hold, up to `connections`; raises its own limit where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(_OWN_FILES, min(connections, soft - _OWN_FILES))


def _check_certificates(settings: Settings) -> None:
    """granian would say of a wrong file only that it panicked.

    Raises:
        SettingsError
    """
    if settings.http_cert is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password a key that has one would have openssl ask on the terminal.
        context.load_cert_chain(settings.http_cert, settings.http_key, password=b"")
        if settings.http_client_ca:
            context.load_verify_locations(settings.http_client_ca)
    except OSError as error:  # ssl.SSLError among them
        raise SettingsError(f"http_cert, http_key or http_client_ca can't be used: {error}") from None


def _free_address(settings: Settings) -> tuple[str, int]:
    """The IP address and port to listen on, found free.

    granian shares a port with whoever shares it in turn, so that a second service on the port of
    the first would take half of its requests: a socket that shares with nobody asks first.
    """
    host, port = settings.http_host, settings.http_port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SettingsError(f"http_host {host!r} is no address: {error.strerror}") from None
    ip = str(address[0])
    if not ipaddress.ip_address(ip).is_loopback and not settings.admits_by_key:
        raise SettingsError(
            f"http_host {host} is reachable from other machines: set LIMNER_KEYS_FILE, LIMNER_API_KEY or "
            f"LIMNER_OIDC_ISSUER, or leave http_host at 127.0.0.1"
        )
    with socket.socket(family) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended is no obstacle
        try:
            asking.bind((ip, port))
        except OSError as error:
            raise LimnerError(
                f"can't listen on {host}:{port} ({error.strerror}): set LIMNER_HTTP_PORT to a free port, or 0"
            ) from None
        return ip, asking.getsockname()[1]
