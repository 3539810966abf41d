"""`limner up`: everything on this machine, in one terminal, until Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path

import click

from streaming import settings as configuration
from streaming.demo.feed import feed, sample_customers
from streaming.doctor import masked
from streaming.embedded.readings import Reading, fresh_p99_s, get, read
from streaming.embedded.stack import Say, Stack, running
from streaming.errors import LimnerError
from streaming.settings import Settings

_LOOK_S = 1.0
# A line that scrolls is read now and then, one that stays is watched.
_SCROLLING_S = 5.0
# Freshness is shown over this window: long enough for a hundred chats, short enough to follow what happens now.
_WINDOW_S = 10.0
# Fast enough to look alive, slow enough that two cores keep up with the texts: the whole demo takes a minute.
_PACE = 50.0
# Customers with much to see, of whom some come early.
_SAMPLE = 20
_DEMO_PACKS = ["ecommerce", "finance"]


@click.command()
@click.option("--demo", is_flag=True, help="Feed the shipped orders and chats, in the order they happened.")
@click.option("--kafka", metavar="HOST:PORT", help="Use this Kafka instead of the embedded broker.")
@click.option("--redis", metavar="URL", help="Use this Redis or Valkey instead of the embedded store.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="Of the HTTP service; 0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--pace", type=click.FloatRange(min=1), default=_PACE, show_default=True, help="Demo events per second.")
@click.option("--until-fed", is_flag=True, help="End, with exit code 0, once the demo is fed and in the profiles.")
def up(
    demo: bool,
    kafka: str | None,
    redis: str | None,
    http_port: int | None,
    workers: int,
    pace: float,
    until_fed: bool,
) -> None:
    """Start broker, store, topics, workers and the HTTP service on this machine; Ctrl-C ends them all.

    A server that a setting names (LIMNER_KAFKA, LIMNER_REDIS, limner.toml) is used, as with the options;
    the embedded ones keep nothing when they end.
    """
    if until_fed and not demo:
        raise click.UsageError("--until-fed needs --demo")
    given: dict[str, object] = {"kafka": kafka, "redis": redis, "http_port": http_port}
    settings = configuration.load(**{name: value for name, value in given.items() if value is not None})
    if demo and "packs" not in settings.model_fields_set:
        settings = settings.model_copy(update={"packs": _DEMO_PACKS})
    # `docker stop` and a closed terminal are as good a reason to end tidily as Ctrl-C.
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    try:
        with running(settings, workers=workers, say=_say_with_time()) as stack:
            click.echo(f"\nlimner is up at {_address(stack.settings)}")
            if demo:
                with _Feeding(stack.settings, pace) as feeding:
                    _watch(stack, feeding, until_fed=until_fed)
            else:
                _watch(stack, None, until_fed=False)
    except KeyboardInterrupt:
        pass
    click.echo("ended: all processes and their temporary folders are gone")


def _say_with_time() -> Say:
    """One line a step, with the time since the one before."""
    before = time.monotonic()

    def say(what: str, detail: str) -> None:
        nonlocal before
        now = time.monotonic()
        click.echo(f"{what:13} {detail:60} {now - before:5.1f} s")
        before = now

    return say


def _address(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.http_port}"


def _try_these(settings: Settings, customer: str) -> str:
    """Commands for another terminal, whole: with the environment that they need there."""
    command = _limner_command()
    key = ' -H "Authorization: Bearer $LIMNER_API_KEY"' if settings.api_key else ""
    store = f"LIMNER_REDIS={masked(settings.redis)} {command}"
    return f"""
From another terminal:
  curl{key} {_address(settings)}/v1/profiles/{customer}
  {store} profile {customer}
  {store} profile {customer} --explain
  LIMNER_KAFKA={settings.kafka} {command} load FILE...

fresh: 99 % of the last {_WINDOW_S:.0f} s' events were in their profile within this time
"""


def _customer_to_try(settings: Settings, *, demo: bool) -> str | None:
    """One of the demo's whose profile is there; None as long as there is none."""
    if not demo:
        return "CUSTOMER_ID"
    return next(filter(lambda it: _is_there(settings, it), sample_customers(_SAMPLE)), None)


def _is_there(settings: Settings, customer: str) -> bool:
    return get(settings.http_port, f"/v1/profiles/{customer}", key=settings.api_key.get_secret_value())[0] == 200


def _limner_command() -> str:
    """`limner` where the shell would find this one, else its path."""
    beside = Path(sys.executable).with_name("limner")
    found = shutil.which("limner")
    return "limner" if (found and Path(found).resolve() == beside.resolve()) or not beside.exists() else str(beside)


class _Feeding:
    """The demo's feed in a thread, and how far it is."""

    def __init__(self, settings: Settings, pace: float) -> None:
        self.sent = 0
        self.total = 0
        self.fault: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(settings, pace), name="feed", daemon=True)

    def _run(self, settings: Settings, pace: float) -> None:
        try:
            feed(settings, stop=self._stop, events_per_s=pace, on_sent=self._on_sent)
        except BaseException as fault:  # noqa: BLE001 - the main thread raises it
            self.fault = fault

    def _on_sent(self, sent: int, total: int) -> None:
        self.sent, self.total = sent, total

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def __enter__(self) -> _Feeding:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)


def _watch(stack: Stack, feeding: _Feeding | None, *, until_fed: bool) -> None:
    """Show progress until Ctrl-C, or until all of the demo is in the profiles.

    Raises:
        LimnerError: a child ended by itself, or the feed failed.
    """
    window: deque[Reading] = deque()
    told = False
    display = _Display()
    try:
        while True:
            stack.check_alive()
            if feeding is not None and feeding.fault is not None:
                raise LimnerError(f"the demo's feed failed: {feeding.fault}") from feeding.fault
            if not told and (customer := _customer_to_try(stack.settings, demo=feeding is not None)):
                display.close()
                click.echo(_try_these(stack.settings, customer))
                told = True
            reading = read(stack.metrics_ports)
            if reading is not None:
                window.append(reading)
                while len(window) > 2 and window[1].at <= reading.at - _WINDOW_S:
                    window.popleft()
                done = until_fed and feeding is not None and _all_in(reading, feeding)
                display.show(_progress(window, feeding), last=done)
                if done:
                    return
            time.sleep(_LOOK_S)
    finally:
        display.close()


def _all_in(now: Reading, feeding: _Feeding) -> bool:
    """Whether what was sent has been counted as merged (or as a dead letter) and nothing waits."""
    return feeding.done and now.lag == 0 and now.events.total() + now.dead_letters >= feeding.sent


def _progress(window: deque[Reading], feeding: _Feeding | None) -> str:
    """One line that fits 80 columns."""
    first, now = window[0], window[-1]
    parts = [
        f"merged {now.events.total():,}",
        f"profiles {now.profiles:,.0f}",
        f"lag {'?' if now.lag is None else f'{now.lag:,.0f}'}",
    ]
    if feeding is not None and feeding.total:
        parts.insert(0, f"sent {feeding.sent:,}/{feeding.total:,}")
    fresh = {source: fresh_p99_s(first, now, source) for source in sorted(now.freshness)}
    shown = [f"{source}s {seconds:.2f}s" for source, seconds in fresh.items() if seconds is not None]
    if shown:
        parts.append(f"fresh {' '.join(shown)}")
    if now.dead_letters:
        parts.append(f"dead letters {now.dead_letters:,.0f}")
    return "  ".join(parts)


class _Display:
    """A line that stays, on a terminal; elsewhere a new line now and then, when something changed."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown, self._shown_at = "", 0.0

    def show(self, line: str, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r{line[:width]:{width}}", nl=False)
        elif line != self._shown and (last or now - self._shown_at >= _SCROLLING_S):
            self._shown, self._shown_at = line, now
            click.echo(line)

    def close(self) -> None:
        if self._live:
            click.echo("")
