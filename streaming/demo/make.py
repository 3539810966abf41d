"""Makes the demo's data: `python -m streaming.demo.make SOURCE_DIR`.

SOURCE_DIR holds `online_retail*.csv[.gz]` (Online Retail, UCI Machine Learning Repository) and
`banking77_train.csv[.gz]`, `banking77_test.csv[.gz]` (BANKING77, PolyAI). The same files give the
same bytes (with the same zlib). What is changed, and both licences: data/README.md.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from streaming.demo.feed import EVENTS_FILE
from streaming.errors import LimnerError
from streaming.events.types import Chat, Event, Limits, Order
from streaming.intake import files, orders
from streaming.intake.mapping import PRESETS, Options, resolve
from streaming.intake.rows import OrderLine, Refused, digest, order_line_reader
from streaming.profiles.schema import RING

CUSTOMERS = 360  # enough for audiences with members, few enough to stay below 1 MB
# Within the ring of remembered event ids, so that a second demo on the same servers changes nothing.
MOST_EVENTS = RING

# Of BANKING77's 77 intents, those that a customer of a shop could have written too.
INTENTS = (
    "Refund_not_showing_up", "age_limit", "apple_pay_or_google_pay", "card_arrival", "card_delivery_estimate",
    "card_payment_fee_charged", "card_payment_not_recognised", "card_payment_wrong_exchange_rate",
    "compromised_card", "country_support", "declined_card_payment", "edit_personal_details",
    "extra_charge_on_statement", "lost_or_stolen_phone", "passcode_forgotten", "pending_card_payment",
    "request_refund", "reverted_card_payment?", "supported_cards_and_currencies", "terminate_account",
    "transaction_charged_twice", "verify_my_identity", "visa_or_mastercard", "why_verify_identity",
)  # fmt: skip

HOUR_MS = 3_600_000
MAX_BYTES = 1 << 20  # of an event, as everywhere


def make(source: Path, target: Path) -> tuple[int, int, int]:
    """Write the events, sorted by time, as gzip'd JSON lines; returns customers, orders and chats."""
    by_customer: dict[str, list[Order]] = defaultdict(list)
    for order in _orders(_find(source, "online_retail")):
        by_customer[order.customer_id].append(order)
    eligible = [customer for customer, history in by_customer.items() if len(history) <= MOST_EVENTS]
    chosen = sorted(eligible, key=lambda customer: _draw("customer", customer))[:CUSTOMERS]
    bought = [order for customer in chosen for order in by_customer[customer]]
    last = max(order.ts for order in bought)
    messages = _messages(source)
    said = [chat for customer in chosen for chat in _chats(customer, by_customer[customer], messages, last)]
    events: list[Event] = sorted([*bought, *said], key=lambda event: (event.ts, event.event_id))
    # No name and no time in the header: the bytes depend on the content alone.
    with target.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as file:
        for event in events:
            file.write(msgspec.json.encode(_without_none(event)) + b"\n")
    return len(chosen), len(bought), len(said)


def _orders(path: Path) -> Iterator[Order]:
    def accepted(rows: Iterator[files.Row]) -> Iterator[tuple[int, OrderLine]]:
        for number, values in rows:
            try:
                yield number, read(number, values)
            except Refused:  # above all lines without a customer
                continue

    with _table(path) as table:
        mapping = resolve(table.name, table.columns, Options(preset=PRESETS["online-retail"]))
        limits = Limits(max_record_bytes=MAX_BYTES, max_future_ms=0)
        read = order_line_reader(mapping, limits, round(time.time() * 1000))
        rows = table.rows(tuple(mapping.columns.values()), _ignore)
        for _, order in orders.group(accepted(rows), lambda number: None):
            yield order


def _messages(source: Path) -> dict[str, list[str]]:
    """intent -> texts in an order that the texts decide, the next to be used last."""
    found: dict[str, set[str]] = {intent: set() for intent in INTENTS}
    for part in ("banking77_train", "banking77_test"):
        with _table(_find(source, part)) as table:
            for _, (text, intent) in table.rows(("text", "category"), _ignore):
                if intent in found:
                    found[intent].add(text.strip())
    return {intent: sorted(texts, key=lambda text: _draw("text", text)) for intent, texts in found.items()}


def _chats(customer: str, history: list[Order], messages: dict[str, list[str]], last: int) -> Iterator[Chat]:
    """A customer's conversations: one to three messages on one matter, within days of one of their orders.

    A fifth never write, a fifth write often; a customer comes back with the same two or three matters.
    """
    manner = _draw("manner", customer)
    if manner < 0.2:
        return
    conversations = 1 + int(_draw("many", customer) * 3) if manner < 0.8 else 6 + int(_draw("many", customer) * 5)
    matters = sorted(INTENTS, key=lambda intent: _draw("matter", customer, intent))[:3]
    for turn in range(conversations):
        where = (customer, str(turn))
        order = history[int(_draw("order", *where) * len(history))]
        ts = order.ts + int((_draw("when", *where) * 120 - 24) * HOUR_MS)  # from a day before to four days after
        if ts > last - HOUR_MS:
            ts = order.ts - int((_draw("before", *where) * 24 + 1) * HOUR_MS)
        intent = matters[int(_draw("which", *where) ** 2 * len(matters))]  # squared: the first matter most
        for message in range(1 + int(_draw("length", *where) * 3)):
            if not messages[intent]:
                return
            text = messages[intent].pop()
            yield Chat(
                event_id=f"chat-{digest(text.encode())}",
                customer_id=customer,
                ts=ts,
                text=text,
                lang="en",
                channel="chat",
            )
            ts += 40_000 + int(_draw("pause", *where, str(message)) * 160_000)


def _without_none(event: Event) -> dict[str, object]:
    values: dict[str, object] = msgspec.to_builtins(event)
    if isinstance(event, Order):
        values["lines"] = [
            {name: value for name, value in msgspec.to_builtins(line).items() if value is not None}
            for line in event.lines
        ]
    return values


def _draw(*parts: str) -> float:
    """A number in [0, 1) that the parts decide, on every machine and Python alike."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=6).digest()) / 2**48


@contextmanager
def _table(path: Path) -> Iterator[files.Table]:
    with files.open_source(str(path), "utf-8-sig", MAX_BYTES) as table:
        if isinstance(table, files.Lines):
            raise LimnerError(f"{path} is not CSV")
        yield table


def _ignore(number: int, refused: Refused) -> None:
    """A line of the sources that is not CSV would show in the figures."""


def _find(folder: Path, start: str) -> Path:
    found = sorted([*folder.glob(f"{start}*.csv"), *folder.glob(f"{start}*.csv.gz")])
    if not found:
        raise LimnerError(f"no {start}*.csv or .csv.gz in {folder}")
    return found[0]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m streaming.demo.make SOURCE_DIR")
    try:
        print("{:,} customers, {:,} orders, {:,} messages".format(*make(Path(sys.argv[1]), EVENTS_FILE)))
    except LimnerError as error:
        sys.exit(str(error))
