"""The process that serves: one, with granian's server in it, ended by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from streaming import logs
from streaming.errors import LimnerError, SettingsError
from streaming.lookup.app import application
from streaming.settings import Settings

_log = logs.get(__name__)


def serve(settings: Settings) -> None:
    """Serve HTTP until SIGTERM or SIGINT; requests under way are answered first.

    Raises:
        SettingsError: `http_host` is no address of this machine, or is off loopback without `api_key`.
        LimnerError: the port is taken.
    """
    host, port = _free_address(settings)
    uvloop.run(_serve(settings, host, port))


async def _serve(settings: Settings, host: str, port: int) -> None:
    server = Server(
        application(settings),
        host,
        port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,  # its log can carry URLs, and so customer ids
    )
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, server.stop)
    _log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
    await server.serve()
    _log.info("stopped")


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
    if not ipaddress.ip_address(ip).is_loopback and not settings.api_key:
        raise SettingsError(
            f"http_host {host} is reachable from other machines: set LIMNER_API_KEY, or leave http_host at 127.0.0.1"
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
