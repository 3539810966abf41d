"""Files to Kafka over a running broker: every event arrives once, every other line is reported."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from kafka.admin import ConfigResource

from streaming import kafka_admin
from streaming.demo import feed as demo
from streaming.demo.make import make
from streaming.embedded.broker import Broker
from streaming.embedded.processes import free_port
from streaming.errors import BrokerUnavailable, LimnerError
from streaming.profiles.schema import RING
from streaming.settings import Settings

SOURCES = Path(__file__).parents[3] / "shared" / "data"
RETAIL = SOURCES / "online_retail_2010-12_2011-09.csv.gz"
needs_sources = pytest.mark.skipif(not RETAIL.is_file(), reason="the data sets are not beside the repository")

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def own_topics(bootstrap: str, **changed: Any) -> Settings:
    """Settings with topics that no other test uses."""
    mark = uuid.uuid4().hex[:8]
    names = {name: f"{name}-{mark}" for name in
             ("chat_topic", "order_topic", "delta_topic", "dead_letter_topic", "control_topic")}  # fmt: skip
    return Settings(kafka=bootstrap, **(names | changed))


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        f"LIMNER_{name.upper()}": str(getattr(settings, name)) for name in settings.model_fields_set
    }  # fmt: skip


def limner(settings: Settings, *args: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streaming.cli", *map(str, args)]
    return subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=120, **more)


def records(settings: Settings, topic: str) -> list[Message]:
    """All of a topic, in order within each partition."""
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka, "group.id": "none", "enable.partition.eof": True,
         "enable.auto.commit": False}
    )  # fmt: skip
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(settings.partitions)])
    found, ended, until = [], 0, time.monotonic() + 60
    while ended < settings.partitions:
        assert time.monotonic() < until
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error() is None:
            found.append(message)
        elif message.error().code() == KafkaError._PARTITION_EOF:
            ended += 1
        else:
            raise AssertionError(message.error())
    consumer.close()
    return found


def events(settings: Settings, topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.value()) for message in records(settings, topic)]


def test_orders_of_a_csv_arrive_once_in_the_customers_partition(any_kafka: str, tmp_path: Path) -> None:
    settings = own_topics(any_kafka)
    path, refused = tmp_path / "orders.csv", tmp_path / "refused.csv"
    lines = [f"{n // 3},S{n},THING,2,2011-01-01 10:00,1.50,{n // 6}.0,UK\n" for n in range(600)]
    lines[100] = "C7,S1,THING,-2,2011-01-01 10:00,1.50,5.0,UK\n"
    lines[200] = "8,S1,THING,-2,2011-01-01 10:00,1.50,5.0,UK\n"
    path.write_text(HEADER + "".join(lines))

    done = limner(settings, "load", "--preset", "online-retail", "--refused", refused, path)

    assert done.returncode == 0, done.stderr
    assert "600" in done.stdout and "201 orders (201 acknowledged" in done.stdout
    assert "quantity not above zero: line 202\n" in done.stdout
    assert list(csv.reader(refused.open()))[1][:3] == [str(path), "202", "quantity not above zero"]
    found = records(settings, settings.order_topic)
    orders = [json.loads(message.value()) for message in found]
    assert Counter(order["order_id"] for order in orders) == Counter({*(str(n) for n in range(200)), "C7"})
    assert sum(len(order["lines"]) for order in orders) == 599
    # Java's, aiokafka's and kafka-python's producers choose the same partition.
    choose = DefaultPartitioner()
    partitions = list(range(settings.partitions))
    assert len({message.partition() for message in found}) > 1
    for message, order in zip(found, orders, strict=True):
        assert message.key() == order["customer_id"].encode()
        assert message.partition() == choose(message.key(), partitions, partitions)


def test_sending_again_repeats_the_ids(broker: Broker, tmp_path: Path) -> None:
    settings = own_topics(broker.bootstrap)
    path = tmp_path / "orders.csv"
    path.write_text(HEADER + "1,S1,A,2,2011-01-01 10:00,1.50,5,UK\n1,S2,B,1,2011-01-01 10:00,1.00,5,UK\n")
    for _ in range(2):
        assert limner(settings, "load", "--preset", "online-retail", path).returncode == 0
    first, second = events(settings, settings.order_topic)
    assert first == second
    assert first["event_id"].startswith("1#")


def test_chats_of_any_columns_and_events_from_standard_input(broker: Broker, tmp_path: Path) -> None:
    settings = own_topics(broker.bootstrap)
    path = tmp_path / "chats.parquet"
    when = pd.to_datetime(["2011-01-01 10:00", "2011-01-01 10:01"])
    pd.DataFrame({"who": [1.0, None], "said": ["hi", "lost"], "when": when}).to_parquet(path)
    mapping = ["--kind", "chat", "--map", "customer_id=who", "--map", "text=said", "--map", "ts=when"]
    done = limner(settings, "load", *mapping, "--set", "lang=en", path)
    assert done.returncode == 0, done.stderr
    assert "no customer: line 2\n" in done.stdout

    event = '{"event_id":"e","customer_id":"2","ts":1293876000000,"text":"hello"}'
    done = limner(settings, "load", "-", input=event + "\n{}\n")
    assert done.returncode == 0, done.stderr
    assert "neither chat nor order: line 2\n" in done.stdout
    found = {message.key(): message.value() for message in records(settings, settings.chat_topic)}
    assert found[b"2"] == event.encode()
    assert json.loads(found[b"1"]).items() >= {"ts": 1293876000000, "text": "hi", "lang": "en"}.items()


def test_an_order_larger_than_a_record_is_refused_and_not_sent(broker: Broker, tmp_path: Path) -> None:
    settings = own_topics(broker.bootstrap, max_record_bytes=1_024)
    path = tmp_path / "orders.csv"
    large = "".join(f"1,S{n},{'A' * 100},2,2011-01-01 10:00,1.50,5,UK\n" for n in range(10))
    path.write_text(HEADER + large + "2,S1,A,2,2011-01-01 10:00,1.50,5,UK\n")
    done = limner(settings, "load", "--preset", "online-retail", path)
    assert done.returncode == 0, done.stderr
    assert "10  too large: line 2, …\n" in done.stdout and "1 orders (1 acknowledged" in done.stdout
    assert [order["order_id"] for order in events(settings, settings.order_topic)] == ["2"]


def test_a_damaged_file_is_sent_again_without_half_orders(broker: Broker, tmp_path: Path) -> None:
    settings = own_topics(broker.bootstrap)
    path = tmp_path / "orders.csv.gz"
    # Numbers that hardly shrink, so that cutting the file costs rows of the end alone.
    lines = [f"{n // 3},{uuid.uuid4()},THING,2,2011-01-01 10:00,1.50,{n // 6},UK\n" for n in range(15_000)]
    whole = gzip.compress((HEADER + "".join(lines)).encode())
    path.write_bytes(whole[: -len(whole) // 5])
    done = limner(settings, "load", "--preset", "online-retail", path)
    assert done.returncode == 1
    assert f"{path} can't be read" in done.stderr and "lines held" in done.stdout
    sent = events(settings, settings.order_topic)
    assert 0 < len(sent) < 4_000
    assert all(len(order["lines"]) == 3 for order in sent)

    path.write_bytes(whole)
    assert limner(settings, "load", "--preset", "online-retail", path).returncode == 0
    ids = Counter(order["event_id"] for order in events(settings, settings.order_topic))
    assert len(ids) == 5_000 and ids.total() == 5_000 + len(sent)


def test_wrong_use_names_the_columns_and_sends_nothing(broker: Broker, tmp_path: Path) -> None:
    settings = own_topics(broker.bootstrap)
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(HEADER + "1,S1,A,2,2011-01-01 10:00,1.50,5,UK\n")
    bad.write_text("a,b\n1,2\n")
    done = limner(settings, "load", "--preset", "online-retail", good, bad)
    assert done.returncode == 2
    assert "bad.csv has no column CustomerID" in done.stderr and "there are a, b" in done.stderr
    assert done.stdout == ""
    assert all(state.missing for state in kafka_admin.ensure_topics(settings, create=False))


def test_no_broker_is_one_line_within_seconds(tmp_path: Path) -> None:
    settings = Settings(kafka=f"127.0.0.1:{free_port()}")
    path = tmp_path / "events.jsonl"
    path.write_text('{"text": "a"}\n')
    started = time.monotonic()
    done = limner(settings, "load", path)
    assert time.monotonic() - started < 10
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"no Kafka at {settings.kafka}" in done.stderr


def loading_forever(settings: Settings) -> tuple[subprocess.Popen[str], threading.Thread]:
    """`limner load -`, and a thread that keeps writing events to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "streaming.cli", "load", "-"], env=environment(settings), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def write() -> None:
        number = 0
        try:
            while True:
                number += 1
                process.stdin.write(f'{{"event_id":"{number}","customer_id":"c","ts":1293876000000,"text":"a"}}\n')  # type: ignore[union-attr]
        except (BrokenPipeError, ValueError):
            pass

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    until = time.monotonic() + 30
    while not any(not state.missing for state in kafka_admin.ensure_topics(settings, create=False)):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1.0)
    return process, writer


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    assert process.stdout and process.stderr and process.stdin
    out, err = process.stdout.read(), process.stderr.read()
    code = process.wait(30)
    for pipe in (process.stdout, process.stderr):
        pipe.close()
    return code, out, err


def test_interrupt_flushes_and_reports(broker: Broker) -> None:
    settings = own_topics(broker.bootstrap)
    process, _ = loading_forever(settings)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code == 130, err
    acknowledged = int(out.partition("chats (")[2].partition(" ack")[0].replace(",", ""))
    assert acknowledged > 0
    assert [event["event_id"] for event in events(settings, settings.chat_topic)] == [
        str(n + 1) for n in range(acknowledged)
    ]


def test_a_broker_that_goes_away_is_reported(tmp_path: Path) -> None:
    with Broker.start() as mine:
        settings = own_topics(mine.bootstrap, store_patience_s=2.0)
        process, _ = loading_forever(settings)
    code, out, err = end(process)
    assert code == 1
    assert f"Kafka at {settings.kafka} did not take" in err
    assert "acknowledged" in out


def test_topics_are_created_verified_and_never_changed(any_kafka: str) -> None:
    settings = own_topics(any_kafka, partitions=3)
    check = limner(settings, "topics", "--check")
    assert (check.returncode, check.stdout.count("missing")) == (1, 5)
    created = kafka_admin.ensure_topics(settings)
    assert [(state.partitions, state.created, state.fault) for state in created] == [(3, True, None)] * 5
    again = limner(settings, "topics")
    assert (again.returncode, again.stdout.count(" ok\n")) == (0, 5)
    assert [state.created for state in kafka_admin.ensure_topics(settings)] == [False] * 5

    other = settings.model_copy(update={"partitions": 5})
    differing = kafka_admin.ensure_topics(other)
    assert all("settings say 5 partitions, it has 3" in (state.fault or "") for state in differing)
    assert [state.partitions for state in differing] == [3] * 5


@pytest.mark.kafka
def test_deltas_are_kept_for_good(apache_kafka: str) -> None:
    settings = own_topics(apache_kafka)
    kafka_admin.ensure_topics(settings)
    with kafka_admin.connect(settings) as admin:
        found = admin.describe_configs([ConfigResource("TOPIC", settings.delta_topic)])
    assert found["topic"][settings.delta_topic]["retention.ms"]["value"] == "-1"


def test_a_topic_created_again_has_another_epoch(any_kafka: str) -> None:
    settings = own_topics(any_kafka)
    topics = [settings.chat_topic, settings.order_topic]
    with pytest.raises(LimnerError, match=f"no topic {topics[0]}, {topics[1]} at .*limner topics"):
        kafka_admin.topic_epochs(settings, topics)
    kafka_admin.ensure_topics(settings)
    before = kafka_admin.topic_epochs(settings, topics)
    assert before == kafka_admin.topic_epochs(settings, topics)
    assert all(len(epoch) == 8 and int(epoch, 16) >= 0 for epoch in before.values())
    admin = kafka_admin.connect(settings)
    admin.delete_topics([settings.chat_topic])
    admin.close()
    until = time.monotonic() + 10
    while not any(state.created for state in kafka_admin.ensure_topics(settings)):
        assert time.monotonic() < until
    after = kafka_admin.topic_epochs(settings, topics)
    assert after[settings.chat_topic] != before[settings.chat_topic]
    assert after[settings.order_topic] == before[settings.order_topic]


@pytest.mark.kafka
def test_a_refused_topic_is_named(apache_kafka: str) -> None:
    settings = own_topics(apache_kafka, replication=2)
    with pytest.raises(BrokerUnavailable, match=f"{settings.chat_topic}.*LIMNER_REPLICATION=2"):
        kafka_admin.ensure_topics(settings)


def test_demo_arrives_once_and_is_as_if_now(broker: Broker) -> None:
    settings = own_topics(broker.bootstrap)
    kafka_admin.ensure_topics(settings)
    told: list[tuple[int, int]] = []
    started = time.time() * 1000
    sent = demo.feed(
        settings, stop=threading.Event(), events_per_s=5_000, on_sent=lambda sent, total: told.append((sent, total))
    )
    assert told[-1] == (sent, sent)
    orders, chats = events(settings, settings.order_topic), events(settings, settings.chat_topic)
    assert len(orders) + len(chats) == sent == len({event["event_id"] for event in (*orders, *chats)})
    times = [event["ts"] for event in (*orders, *chats)]
    assert started - 1_000 <= max(times) <= time.time() * 1000
    assert max(times) - min(times) > 200 * 86_400_000
    for found in (orders, chats):
        # So many ids a profile remembers: a second demo is dropped as repeats.
        assert Counter(event["customer_id"] for event in found).most_common(1)[0][1] <= RING
    for customer in demo.sample_customers(3):
        assert sum(event["customer_id"] == customer for event in orders) >= 5
        assert sum(event["customer_id"] == customer for event in chats) >= 5


def test_demo_without_a_broker_fails() -> None:
    settings = Settings(kafka=f"127.0.0.1:{free_port()}", store_patience_s=1.5)
    with pytest.raises(BrokerUnavailable, match=f"{settings.kafka} did not take"):
        demo.feed(settings, stop=threading.Event(), events_per_s=50_000)


def test_demo_keeps_its_pace_and_stops(broker: Broker) -> None:
    settings = own_topics(broker.bootstrap)
    kafka_admin.ensure_topics(settings)
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    sent = demo.feed(settings, stop=stop, events_per_s=200)
    assert 150 < sent < 350
    assert len(events(settings, settings.order_topic) + events(settings, settings.chat_topic)) == sent


@needs_sources
def test_demo_data_comes_out_the_same(tmp_path: Path) -> None:
    make(SOURCES, tmp_path / "events.jsonl.gz")
    with gzip.open(tmp_path / "events.jsonl.gz") as made, gzip.open(demo.EVENTS_FILE) as shipped:
        assert made.read() == shipped.read()


@needs_sources
def test_online_retail_gives_the_figures_of_pandas(broker: Broker) -> None:
    settings = own_topics(broker.bootstrap)
    process = subprocess.Popen(
        [sys.executable, "-m", "streaming.cli", "load", "--preset", "online-retail", RETAIL],
        env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    running, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        most = max(most, running.memory_info().rss)
        time.sleep(0.05)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert most < 150 * 1024 * 1024, "all of its 270,000 accepted lines would not fit"
    assert "370,931" in out and "98,056  no customer: line 624," in out

    raw = pd.read_csv(RETAIL, dtype=str, keep_default_na=False)
    raw["amount"] = (raw.UnitPrice.astype(float) * 10_000).round().astype(int) * raw.Quantity.astype(int)
    kept = raw[raw.CustomerID != ""].assign(customer=raw.CustomerID.str.removesuffix(".0"))
    cancelled = kept.InvoiceNo.str.startswith("C")

    def by_customer(rows: pd.DataFrame, column: str, how: str) -> dict[str, Any]:
        return dict(rows.groupby("customer")[column].agg(how))

    orders = events(settings, settings.order_topic)
    figures: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    newest: dict[str, int] = {}
    for order in orders:
        customer, status = order["customer_id"], order["status"]
        figures[f"{status} orders"][customer] += 1
        figures[f"{status} amount"][customer] += sum(
            round(line["unit_price"] * 10_000) * int(line["quantity"]) for line in order["lines"]
        )
        newest[customer] = max(newest.get(customer, 0), order["ts"])
    assert len({order["event_id"] for order in orders}) == len(orders)
    assert sum(len(order["lines"]) for order in orders) == len(kept)
    check: Callable[[str, pd.DataFrame, str, str], None] = lambda name, rows, column, how: _same(  # noqa: E731
        figures[name], by_customer(rows, column, how)
    )
    check("placed orders", kept[~cancelled], "InvoiceNo", "nunique")
    check("placed amount", kept[~cancelled], "amount", "sum")
    check("cancelled orders", kept[cancelled], "InvoiceNo", "nunique")
    check("cancelled amount", kept[cancelled].assign(amount=-kept.amount), "amount", "sum")
    times = kept.assign(ts=pd.to_datetime(kept.InvoiceDate, utc=True).astype("datetime64[ms, UTC]").astype("int64"))
    _same(newest, by_customer(times, "ts", "max"))


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert dict(found) == {customer: int(value) for customer, value in wanted.items()}
