"""Rows of tables become events: mapping, normalisation, refusals, grouping."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import msgspec
import pytest

from streaming.errors import SettingsError
from streaming.events import Limits, decode
from streaming.events.types import Line, Order, Position, Record
from streaming.intake import orders
from streaming.intake.mapping import PRESETS, Options, resolve
from streaming.intake.rows import OrderKey, OrderLine, Refused, chat_reader, order_line_reader

NOW = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
LIMITS = Limits(max_record_bytes=1 << 20, max_future_ms=0)
RETAIL = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]


def retail_line(**changed: object) -> OrderLine:
    row: dict[str, object] = {
        "InvoiceNo": "536365", "StockCode": "85123A", "Description": " WHITE HANGING HEART ", "Quantity": "6",
        "InvoiceDate": "2010-12-01 08:26:00", "UnitPrice": "2.55", "CustomerID": "17850.0",
    } | changed  # fmt: skip
    mapping = resolve("f.csv", RETAIL, Options(preset=PRESETS["online-retail"]))
    return order_line_reader(mapping, LIMITS, NOW)(1, [row[column] for column in mapping.columns.values()])


def chat(columns: list[str], values: list[object], number: int = 1, **options: object):  # type: ignore[no-untyped-def]
    mapping = resolve("f.csv", columns, Options(kind="chat", **options))  # type: ignore[arg-type]
    by_column = dict(zip(columns, values, strict=True))
    return chat_reader(mapping, LIMITS, NOW)(number, [by_column[column] for column in mapping.columns.values()])


def test_online_retail_line() -> None:
    assert retail_line() == OrderLine(
        OrderKey("536365", "17850", "GBP", "placed"),
        round(datetime(2010, 12, 1, 8, 26, tzinfo=UTC).timestamp() * 1000),
        Line(sku="85123A", description="WHITE HANGING HEART", quantity=6.0, unit_price=2.55),
    )


def test_cancellation_has_positive_quantity() -> None:
    order, _, line = retail_line(InvoiceNo="C536379", Quantity="-1")
    assert (order.order_id, order.status, line.quantity) == ("C536379", "cancelled", 1.0)


def test_free_line_is_taken() -> None:
    assert retail_line(UnitPrice="0.0").line.unit_price == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"CustomerID": ""}, "no customer"),
        ({"CustomerID": None}, "no customer"),
        ({"CustomerID": float("nan")}, "no customer"),
        ({"InvoiceNo": " "}, "no order id"),
        ({"Quantity": "0"}, "quantity not above zero"),
        ({"Quantity": "-3"}, "quantity not above zero"),
        ({"InvoiceNo": "C1", "Quantity": "0"}, "quantity not above zero"),
        ({"Quantity": "six"}, "bad quantity"),
        ({"Quantity": "nan"}, "bad quantity"),
        ({"Quantity": "1000001"}, "bad quantity"),
        ({"UnitPrice": "-11062.06"}, "negative price"),
        ({"UnitPrice": "2,55"}, "bad price"),
        ({"UnitPrice": ""}, "bad price"),
        ({"InvoiceDate": "soon"}, "bad date"),
        ({"InvoiceDate": "2026-01-01 00:00:01"}, "bad date"),  # ahead of the clock: it would be a dead letter
        ({"InvoiceDate": "1970-01-01 00:00"}, "bad date"),
        ({"StockCode": ""}, "bad sku"),
        ({"StockCode": "a{b}"}, "bad sku"),
        ({"CustomerID": "x" * 129}, "bad customer_id"),
        ({"CustomerID": "{17850}"}, "bad customer_id"),
    ],
)
def test_refused(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        retail_line(**changed)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "written",
    ["2011-09-30 17:20", "2011-09-30T17:20:00Z", "2011-09-30T19:20:00+02:00", "9/30/2011 17:20", "1317403200000",
     "1317403200", 1317403200000, datetime(2011, 9, 30, 17, 20), datetime(2011, 9, 30, 17, 20, tzinfo=UTC)],
)  # fmt: skip
def test_dates(written: object) -> None:
    assert retail_line(InvoiceDate=written).ts == 1317403200000


def test_timezone_holds_for_times_without_offset_alone() -> None:
    zone = {"zone": ZoneInfo("Europe/London"), "constants": {"customer_id": "c"}}
    summer = chat(["ts", "text"], ["2011-09-30 18:20", "hello"], **zone)
    assert summer.ts == 1317403200000
    assert chat(["ts", "text"], ["2011-09-30T17:20:00Z", "hello"], **zone).ts == 1317403200000


@pytest.mark.parametrize("written", ["17850.0", "17850", 17850, 17850.0, Decimal("17850")])
def test_customer_ids_of_all_writings_are_one(written: object) -> None:
    assert retail_line(CustomerID=written).order.customer_id == "17850"


def test_chat_ids_repeat_with_content_and_tell_others_apart() -> None:
    columns = ["customer_id", "ts", "text"]
    first = chat(columns, ["c", "2020-01-01", "hello"])
    assert chat(columns, ["c", "2020-01-01", "hello"], number=7).event_id == first.event_id
    others = [["d", "2020-01-01", "hello"], ["c", "2020-01-02", "hello"], ["c", "2020-01-01", "hell"]]
    assert len({first.event_id, *(chat(columns, values).event_id for values in others)}) == 4
    # One time for all rows: equal texts are not the same message.
    one_time = {"constants": {"customer_id": "c", "ts": "2020-01-01"}}
    assert (
        chat(["text"], ["hi"], number=1, **one_time).event_id != chat(["text"], ["hi"], number=2, **one_time).event_id
    )


def test_mapping_says_what_is_missing() -> None:
    with pytest.raises(SettingsError, match="no column Invoice: there are a, b"):
        resolve("f.csv", ["a", "b"], Options(kind="order", columns={"order_id": "Invoice"}))
    with pytest.raises(SettingsError, match=r"customer_id, ts of a chat.*--set customer_id=VALUE"):
        resolve("f.csv", ["text", "category"], Options(preset=PRESETS["banking77"]))
    with pytest.raises(SettingsError, match="no field txt in a chat: there are customer_id, ts, text"):
        resolve("f.csv", ["a"], Options(kind="chat", columns={"txt": "a"}))
    with pytest.raises(SettingsError, match="--kind chat or --kind order"):
        resolve("f.csv", ["a"], Options())


def test_user_overrides_preset() -> None:
    columns = [*RETAIL, "Cur"]
    preset = PRESETS["online-retail"]
    assert resolve("f", columns, Options(preset=preset)).constants == {"currency": "GBP"}
    assert resolve("f", columns, Options(preset=preset, constants={"currency": "EUR"})).constants == {"currency": "EUR"}
    mapped = resolve("f", columns, Options(preset=preset, columns={"currency": "Cur"}))
    assert mapped.columns["currency"] == "Cur"
    assert mapped.constants == {}


def line(order: str, customer: str = "c", sku: str = "s", ts: int = NOW, status: str = "placed") -> OrderLine:
    key = OrderKey(order, customer, "GBP", status)  # type: ignore[arg-type]
    return OrderLine(key, ts, Line(sku=sku, description="", quantity=1, unit_price=1))


def grouped(lines: list[OrderLine]) -> tuple[list[tuple[int, Order]], list[int]]:
    late: list[int] = []
    return list(orders.group(enumerate(lines, 1), late.append)), late


def test_lines_of_an_order_become_one_event_even_with_others_between() -> None:
    found, late = grouped([line("1", sku="a"), line("2", "d"), line("1", sku="b", ts=NOW + 60_000)])
    assert sorted((number, order.order_id, [x.sku for x in order.lines]) for number, order in found) == [
        (1, "1", ["a", "b"]),
        (2, "2", ["s"]),
    ]
    assert next(order for _, order in found if order.order_id == "1").ts == NOW + 60_000
    assert late == []


def test_other_customers_and_states_of_an_order_id_are_other_orders() -> None:
    found, _ = grouped([line("1"), line("1", "d"), line("1", status="returned")])
    assert {(order.customer_id, order.status) for _, order in found} == {
        ("c", "placed"), ("d", "placed"), ("c", "returned"),
    }  # fmt: skip
    assert len({order.event_id for _, order in found}) == 3


def test_late_part_is_another_event_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "WINDOW_LINES", 3)
    lines = [line("1", sku="a"), line("2"), line("3"), line("4"), line("1", sku="b")]
    found, late = grouped(lines)
    parts = [order for _, order in found if order.order_id == "1"]
    assert [[x.sku for x in part.lines] for part in parts] == [["a"], ["b"]]
    assert parts[0].event_id != parts[1].event_id
    assert late == [5]
    assert [order.event_id for _, order in grouped(lines)[0]] == [order.event_id for _, order in found]


def test_nothing_waits_longer_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "WINDOW_LINES", 10)
    came = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal came
        while True:
            came += 1
            yield came, line(str(came))

    stream = orders.group(endless(), lambda number: None)
    for sent in range(1, 101):
        next(stream)
        assert came - sent <= 10


def test_large_order_goes_in_parts_that_the_worker_takes() -> None:
    found, late = grouped([line("x" * 128, sku=f"sku-{n}") for n in range(5_001)])
    assert [len(order.lines) for _, order in found] == [5_000, 1]
    assert late == [5_001]
    for _, order in found:
        record = Record(Position("order-events", 0, "", 0), None, msgspec.json.encode(order), (), NOW)
        assert decode(record, "order", LIMITS, NOW) == ([order], [])
