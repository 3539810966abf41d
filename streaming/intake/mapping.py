"""Which column holds which field, and what else a file's rows need to become events."""

from __future__ import annotations

from collections.abc import Mapping as Lookup
from collections.abc import Sequence
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from streaming.errors import SettingsError
from streaming.events.types import Source

REQUIRED: dict[Source, tuple[str, ...]] = {
    "chat": ("customer_id", "ts", "text"),
    "order": ("customer_id", "ts", "order_id", "currency", "sku", "quantity", "unit_price"),
}
OPTIONAL: dict[Source, tuple[str, ...]] = {
    "chat": ("event_id", "lang", "channel", "role"),
    "order": ("description", "category", "status"),
}


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of a published data set: its columns, and how it writes things."""

    kind: Source
    columns: dict[str, str]
    constants: dict[str, str] = field(default_factory=dict)
    cancel_prefix: str = ""
    date_format: str = ""


PRESETS: dict[str, Preset] = {
    # UCI Machine Learning Repository, Online Retail. Copies differ in how they write dates; an
    # invoice number that starts with C is a cancellation, its quantities negative.
    "online-retail": Preset(
        kind="order",
        columns={
            "order_id": "InvoiceNo",
            "sku": "StockCode",
            "description": "Description",
            "quantity": "Quantity",
            "ts": "InvoiceDate",
            "unit_price": "UnitPrice",
            "customer_id": "CustomerID",
        },
        constants={"currency": "GBP"},
        cancel_prefix="C",
        date_format="%m/%d/%Y %H:%M",
    ),
    # PolyAI, BANKING77: `text,category`, no customer and no time.
    "banking77": Preset(kind="chat", columns={"text": "text"}, constants={"lang": "en", "channel": "chat"}),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, before a file is seen."""

    kind: Source | None = None
    preset: Preset | None = None
    columns: Lookup[str, str] = field(default_factory=dict)
    constants: Lookup[str, str] = field(default_factory=dict)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    encoding: str = "utf-8-sig"  # a byte order mark at the start is no part of the first column's name

    @property
    def mapped(self) -> bool:
        """Whether JSON lines are rows to map; they are events otherwise."""
        return bool(self.preset or self.columns or self.constants)


@dataclass(frozen=True, slots=True)
class Mapping:
    """How one file's rows become events: `columns` and `constants` are keyed by field and do not overlap."""

    kind: Source
    columns: dict[str, str]
    constants: dict[str, str]
    zone: ZoneInfo
    cancel_prefix: str = ""
    date_format: str = ""


def resolve(name: str, found: Sequence[str], options: Options) -> Mapping:
    """Fit the options to a file `name` with the columns `found`. A column called like a field needs no option.

    Raises:
        SettingsError: no kind, an unknown field or column, or a required field that nothing fills;
            names it, the file, and what there is.
    """
    preset = options.preset
    kind = options.kind or (preset.kind if preset else None)
    if kind is None:
        raise SettingsError(f"{name}: rows of a table need --kind chat or --kind order, or a --preset")
    known = REQUIRED[kind] + OPTIONAL[kind]
    if unknown := [name for name in (*options.columns, *options.constants) if name not in known]:
        raise SettingsError(f"no field {', '.join(unknown)} in a {kind}: there are {', '.join(known)}")
    # What the user says holds over the preset, and what is said for all rows over what a column says.
    constants = {name: value for name, value in (preset.constants if preset else {}).items()
                 if name not in options.columns} | dict(options.constants)  # fmt: skip
    asked = (preset.columns if preset else {}) | dict(options.columns)
    if absent := {column for fieldname, column in asked.items() if fieldname not in constants} - set(found):
        raise SettingsError(
            f"{name} has no column {', '.join(sorted(absent))}: there are {', '.join(found)}. Use --map FIELD=COLUMN"
        )
    columns = {fieldname: fieldname for fieldname in known if fieldname in found} | asked
    columns = {fieldname: column for fieldname, column in columns.items() if fieldname not in constants}
    if empty := [fieldname for fieldname in REQUIRED[kind] if fieldname not in columns and fieldname not in constants]:
        raise SettingsError(
            f"{name}: nothing says what is the {', '.join(empty)} of a {kind}: use --map {empty[0]}=COLUMN "
            f"(there are {', '.join(found)}) or --set {empty[0]}=VALUE for all rows"
        )
    return Mapping(
        kind=kind,
        columns=columns,
        constants=constants,
        zone=options.zone,
        cancel_prefix=preset.cancel_prefix if preset else "",
        date_format=preset.date_format if preset else "",
    )
