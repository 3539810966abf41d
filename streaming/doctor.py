"""What must be right before limner works, each as a function that looks and says: no repairs, no printing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import ipaddress
import platform
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from pydantic import SecretStr

from streaming.errors import BrokerUnavailable, SettingsError
from streaming.settings import Settings, load

# A check that takes longer than this is itself the answer. Loading the model takes about 10 s on 2 cores.
TIMEOUT_S = 5.0
DEEP_TIMEOUT_S = 120.0
# Event times and freshness are compared over machines: a second matters to freshness, five to retention of order.
CLOCK_WARN_S = 1.0
CLOCK_FAIL_S = 5.0
# ZADD GT, which keeps audiences in order under repeats.
OLDEST_REDIS = (6, 2)
# A worker with the float32 base model takes about 1.3 GB; the rest is for its batches.
MEMORY_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """`ok` with a `fix` is a warning: it works, and could be better."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def run(*, deep: bool) -> Iterator[Check]:
    """All checks, at once in threads, yielded in order. One that hangs costs `TIMEOUT_S`, not the others."""
    try:
        settings = load()
    except SettingsError as error:  # nothing else can be looked at with wrong settings
        yield Check("settings", False, str(error))
        return
    told = sorted(settings.model_fields_set)
    yield Check("settings", True, f"set: {', '.join(told)}" if told else "all defaults")
    checks: list[tuple[str, Callable[[Settings], Check]]] = [
        ("python", check_python),
        ("memory", check_memory),
        ("http", check_http),
        ("broker", check_broker),
        ("topics", check_topics),
        ("store", check_store),
        ("clock", check_clock),
        ("packs", check_packs),
        ("model", check_model_loads if deep else check_model),
    ]
    yield from _together(checks, settings)
    # alone: it may measure
    yield from _together([("engines", measure_engines if deep else check_engines)], settings)


def _together(checks: list[tuple[str, Callable[[Settings], Check]]], settings: Settings) -> Iterator[Check]:
    started = time.monotonic()
    answers = [_in_thread(name, check, settings) for name, check in checks]
    for (name, check), answer in zip(checks, answers, strict=True):
        timeout_s = DEEP_TIMEOUT_S if check in (check_model_loads, measure_engines) else TIMEOUT_S
        try:
            yield answer.get(timeout=max(0.0, started + timeout_s - time.monotonic()))
        except queue.Empty:
            yield Check(name, False, f"no answer within {timeout_s:.0f} s", "see whether its host drops packets")


def _in_thread(name: str, check: Callable[[Settings], Check], settings: Settings) -> queue.SimpleQueue[Check]:
    answer: queue.SimpleQueue[Check] = queue.SimpleQueue()

    def look() -> None:
        try:
            answer.put(check(settings))
        except Exception as error:  # noqa: BLE001 - whatever a check trips over is its finding
            answer.put(Check(name, False, f"{type(error).__name__}: {error}", "limner did not expect this: report it"))

    threading.Thread(target=look, name=f"doctor {name}", daemon=True).start()
    return answer


def check_python(_: Settings) -> Check:
    packages = ("torch", "transformers", "faust-streaming", "confluent-kafka", "redis")
    versions, missing = [f"Python {platform.python_version()}"], []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return Check("python", False, f"not installed: {', '.join(missing)}", "pip install 'limner[all]'")
    return Check("python", True, ", ".join(versions))


def check_memory(_: Settings) -> Check:
    available = available_memory()
    if available is None:
        return Check("memory", True, f"not known on {sys.platform}")
    detail = f"{available / 1024**3:.1f} GiB available"
    if available < MEMORY_BYTES:
        return Check("memory", False, detail, f"a worker needs {MEMORY_BYTES / 1024**3:.0f} GiB: free some, or add")
    return Check("memory", True, detail)


def available_memory() -> int | None:
    """Bytes that a new process could use: the machine's, or what is left of the container's limit."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    left = [int(found[1]) * 1024] if found else []
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            left.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass
    return min(left, default=None)


def check_http(settings: Settings) -> Check:
    where = f"{settings.http_host}:{settings.http_port}"
    if is_loopback(settings.http_host):
        return Check("http", True, f"{where} is loopback only")
    if not settings.admits_by_key:
        return Check("http", False, f"{where} is open to the network without a key",
                     "set LIMNER_KEYS_FILE or LIMNER_API_KEY, or LIMNER_HTTP_HOST=127.0.0.1")  # fmt: skip
    if not settings.http_cert:
        return Check("http", True, f"{where} asks for a key, unencrypted",
                     "set LIMNER_HTTP_CERT and LIMNER_HTTP_KEY, unless a proxy before it speaks HTTPS")  # fmt: skip
    return Check("http", True, f"{where} asks for a key")


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_broker(settings: Settings) -> Check:
    from streaming import kafka_admin

    try:
        with closing(kafka_admin.connect(settings)) as admin:
            nodes = len(admin.describe_cluster()["brokers"])
    except BrokerUnavailable as error:
        return Check("broker", False, *str(error).split(": ", 1))
    return Check("broker", True, f"{settings.kafka} answers, {nodes} node{'s' if nodes != 1 else ''}")


def check_topics(settings: Settings) -> Check:
    from streaming import kafka_admin

    try:
        states = kafka_admin.ensure_topics(settings, create=False)
    except BrokerUnavailable:
        return Check("topics", False, "no broker to ask", "see broker")
    faults = [f"{state.topic} {state.fault}" for state in states if state.fault]
    if faults:
        fix = "limner topics" if any(state.missing for state in states) else "see LIMNER_PARTITIONS"
        return Check("topics", False, "; ".join(faults), fix)
    return Check("topics", True, f"{', '.join(state.topic for state in states)} with {settings.partitions} partitions")


def check_store(settings: Settings) -> Check:
    fix = "start Redis or Valkey, or set LIMNER_REDIS to where it is"
    try:
        with _store(settings) as client:
            info: dict[str, Any] = client.info("everything")
            client.eval("return 1", 0)
    except redis.ResponseError as error:
        return Check("store", False, f"{masked(settings.redis)} refuses: {error}", "allow INFO and EVAL to this user")
    except (redis.RedisError, OSError) as error:
        return Check("store", False, f"{masked(settings.redis)} does not answer: {error}", fix)
    return judge_store(info)


def judge_store(info: dict[str, Any]) -> Check:
    """The finding about a store from its INFO."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info["redis_version"])  # Valkey gives the Redis version that it stands for
    policy = info.get("maxmemory_policy", "noeviction")
    limit = f"maxmemory {info['maxmemory'] / 1024**2:.0f} MiB" if info.get("maxmemory") else "no maxmemory"
    detail = f"{name} {info.get('valkey_version', version)}, {limit}, {policy}"
    if tuple(map(int, version.split(".")[:2])) < OLDEST_REDIS:
        return Check("store", False, detail, f"Redis {'.'.join(map(str, OLDEST_REDIS))} is the oldest that works")
    if policy != "noeviction":
        return Check("store", False, f"{detail}: a full store would drop profiles without a word",
                     "CONFIG SET maxmemory-policy noeviction")  # fmt: skip
    if info.get("role") != "master":
        return Check("store", False, f"{detail}: it is a replica and takes no writes", "set LIMNER_REDIS to its master")
    if not info.get("aof_enabled"):
        return Check("store", True, f"{detail}, no append-only file",
                     "`appendonly yes` keeps merged profiles over a crash of the store")  # fmt: skip
    return Check("store", True, f"{detail}, append-only file")


def check_clock(settings: Settings) -> Check:
    try:
        with _store(settings) as client:
            client.ping()  # the connection's own time is not the clock's fault
            before = time.time()
            seconds, micros = client.time()
            local = (before + time.time()) / 2
    except (redis.RedisError, OSError):
        return Check("clock", False, "no store to compare with", "see store")
    return judge_clock(local - (seconds + micros / 1e6))


def judge_clock(ahead_s: float) -> Check:
    """The finding about a local clock that is `ahead_s` ahead of the store's."""
    detail = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s >= 0 else 'behind'} the store's clock"
    fix = "run an NTP client (chrony, systemd-timesyncd) on both" if abs(ahead_s) > CLOCK_WARN_S else ""
    return Check("clock", abs(ahead_s) <= CLOCK_FAIL_S, detail, fix)


def check_packs(settings: Settings) -> Check:
    from model.errors import PackError
    from model.taxonomy import load_packs

    try:
        packs = load_packs(settings.packs)
    except PackError as error:
        return Check("packs", False, str(error), "see LIMNER_PACKS")
    facets = {facet.name: len(facet.labels) for pack in packs for facet in pack.facets}
    about = f"{', '.join(pack.name for pack in packs)}: {len(facets)} facets, {sum(facets.values())} labels"
    return Check("packs", True, about)


def check_model(settings: Settings) -> Check:
    """Whether the model's files are there and whole."""
    from model.e5 import FOLDER
    from model.files import is_intact

    folder = settings.cache_dir / FOLDER
    if settings.model != "base":
        return Check("model", True, f"{settings.model} (looked into with --deep)")
    if not folder.is_dir():
        return Check("model", False, f"base encoder not in {folder}",
                     "the first `limner worker` or `limner up` puts it there (about 10 s)")  # fmt: skip
    if not is_intact(folder):
        return Check("model", False, f"{folder} is cut short or altered", "the next `limner worker` converts it again")
    return Check("model", True, f"base encoder in {folder}, checksums right")


def check_model_loads(settings: Settings) -> Check:
    """Load the model, as a worker does, and embed one text."""
    from model import Engine
    from model.errors import ModelError

    started = time.monotonic()
    try:
        engine = Engine.load(settings.model, device=settings.device, packs=settings.packs, cache_dir=settings.cache_dir)
        embedding = engine.embed(["Where is my parcel?"])
    except ModelError as error:
        return Check("model", False, str(error), "see LIMNER_MODEL, LIMNER_CACHE_DIR and LIMNER_DEVICE")
    seconds = time.monotonic() - started
    return Check(
        "model", True, f"{settings.model} on {engine.device}: {embedding.shape[1]} dimensions, {seconds:.1f} s"
    )


def check_engines(settings: Settings) -> Check:
    """How many engines a worker starts, and what that was chosen by."""
    from model import autotune

    if settings.engines:
        return Check("engines", True, f"{settings.engines}, as set")
    found = autotune.kept(settings.model, settings.cache_dir)
    if found is None:
        return Check("engines", True, "not measured here yet (the first worker or --deep does, on an idle machine)")
    return Check("engines", True, autotune.words(found))


def measure_engines(settings: Settings) -> Check:
    """`check_engines`, but measured now if it was not."""
    from model import autotune
    from model.errors import ModelError
    from streaming import engines

    if settings.engines:
        return check_engines(settings)
    try:
        found = autotune.tuned(settings.model, settings.cache_dir, engines.start_of(settings))
    except ModelError as error:
        return Check("engines", False, str(error), "see model")
    if not found.by_processes:
        return Check("engines", True, "not measured: this machine is busy with something else", "try on an idle one")
    return Check("engines", True, autotune.words(found))


def settings_table(settings: Settings | None) -> list[dict[str, Any]]:
    """Every setting: name of its variable, value (absent without `settings`), default, description.

    Secrets are masked.
    """
    rows = []
    for name, field in Settings.model_fields.items():
        value = {} if settings is None else {"value": _shown(getattr(settings, name))}
        default = _shown(field.get_default(call_default_factory=True))
        rows.append(
            {"name": f"LIMNER_{name.upper()}", **value, "default": default, "description": field.description or ""}
        )
    return rows


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "***" if value else ""
    if isinstance(value, str):
        return masked(value)
    return str(value) if isinstance(value, Path) else value


def masked(url: str) -> str:
    """`url` with the password of its user part replaced."""
    return re.sub(r"(://[^:@]*:).*@", r"\1***@", url)


def _store(settings: Settings) -> redis.Redis:
    # Under the check's own limit, so that the store's words reach the reader, not just "no answer".
    patience_s = min(settings.store_timeout_s, TIMEOUT_S * 0.6)
    return redis.Redis.from_url(settings.redis, socket_timeout=patience_s, socket_connect_timeout=patience_s)
