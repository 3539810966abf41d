"""Labelled texts for fitting and measuring the shipped packs, per facet: what ships in `trainer/data`, and public
sets from a folder of the user's.

The folder may hold (gzipped CSV with a header; a set that isn't there is left out, and said so):

    banking77_train.csv.gz, banking77_test.csv.gz    text, category        BANKING77, PolyAI, CC BY 4.0
    shop_reviews_zh.csv.gz                           cat, label, review    online_shopping_10_cats, ChineseNlpCorpus
"""

from __future__ import annotations

import csv
import gzip
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "data"
Half = Literal["fit", "test"]
# A few numbers per facet are fitted, so samples do: 100 reviews a category and polarity, 2,500 bank messages.
REVIEWS_EACH = 100
BANK_MESSAGES = 2500

_REVIEW_LABELS = {
    "书籍": "books",
    "平板": "tablets",
    "手机": "phones",
    "水果": "fruit",
    "洗发水": "personal_care",
    "热水器": "appliances",
    "蒙牛": "dairy",
    "衣服": "clothing",
    "计算机": "computers",
    "酒店": "hotels",
}
# Intents whose messages only ask for information: the neutral side of sentiment, beside the shipped chats.
_INFORMATION = {
    "age_limit", "apple_pay_or_google_pay", "automatic_top_up", "card_acceptance", "country_support",
    "disposable_card_limits", "exchange_via_app", "fiat_currency_support", "get_disposable_virtual_card",
    "supported_cards_and_currencies", "top_up_limits", "visa_or_mastercard",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """`labels`: those that hold, of one facet; of a single facet with several, any one is right."""

    text: str
    labels: frozenset[str]


# facet -> set name -> examples
Sets = dict[str, dict[str, list[Example]]]


def load(folder: Path, half: Half) -> Sets:
    """The examples of one half. Fit and test halves share no text."""
    retail = [
        Example(row["description"], frozenset(filter(None, row["label"].split("|"))))
        for row in _rows(SHIPPED / "retail_descriptions_labelled.csv")
        if row["half"] == half
    ]
    chats = [row for row in _rows(SHIPPED / "shop_chats_labelled.csv") if row["half"] == half]
    reviews = _reviews(folder, half)
    bank = _bank(folder, half)
    none: frozenset[str] = frozenset()

    off_domain_bank = [Example(text, none) for text, _ in bank][:500]
    sets: Sets = {
        "interests": {
            "order lines": retail,
            "Chinese reviews": [Example(text, frozenset([_REVIEW_LABELS[cat]])) for cat, _, text in reviews],
            "off topic (bank)": off_domain_bank,
            "off topic (small talk)": [
                Example(row["text"], none) for row in chats if not row["need"] and row["sentiment"] == "neutral"
            ],
        },
        "needs": {
            "shop chats": [Example(row["text"], frozenset([row["need"]])) for row in chats if row["need"]],
            "off topic (chats)": [Example(row["text"], none) for row in chats if not row["need"]],
            "off topic (praise of books, hotels)": [
                Example(text, none) for cat, liked, text in reviews if cat in ("书籍", "酒店") and liked == "1"
            ],
            "off topic (order lines)": [Example(example.text, none) for example in retail],
        },
        "sentiment": {
            "Chinese reviews": [
                Example(text, frozenset(["positive" if liked == "1" else "negative"])) for _, liked, text in reviews
            ],
            "shop chats": [
                Example(row["text"], frozenset([row["sentiment"]])) for row in chats if row["sentiment"]
            ],
            "bank information": [
                Example(text, frozenset(["neutral"])) for text, intent in bank if intent in _INFORMATION
            ],
        },
    }  # fmt: skip
    groups: dict[str, dict[str, list[str]]] = yaml.safe_load((SHIPPED / "banking77_groups.yaml").read_text())
    off_topic = [Example(example.text, none) for example in retail[:150]]
    off_topic += [Example(text, none) for _, _, text in reviews[::5]]
    off_topic += [Example(row["text"], none) for row in chats if not row["need"]]
    for facet, labels in groups.items():
        sets[facet] = {
            "BANKING77": [
                Example(text, frozenset(label for label, intents in labels.items() if intent in intents))
                for text, intent in bank
            ],
            "off topic": off_topic,
        }
    return {facet: {name: found for name, found in named.items() if found} for facet, named in sets.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _public(path: Path) -> list[dict[str, str]]:
    if path.is_file():
        return list(_rows(path))
    log.warning("%s is not there: its figures are left out", path)
    return []


def _bank(folder: Path, half: Half) -> list[tuple[str, str]]:
    rows = _public(folder / f"banking77_{'train' if half == 'fit' else 'test'}.csv.gz")
    random.Random(0).shuffle(rows)  # noqa: S311
    return [(row["text"], row["category"]) for row in rows[:BANK_MESSAGES]]


def _reviews(folder: Path, half: Half) -> list[tuple[str, str, str]]:
    """(category, "1" if liked, text), the same number of each category and polarity where there are enough."""
    rows = _public(folder / "shop_reviews_zh.csv.gz")
    random.Random(0).shuffle(rows)  # noqa: S311
    sample: list[tuple[str, str, str]] = []
    for category in _REVIEW_LABELS:
        for liked in "01":
            group = [row for row in rows if row["cat"] == category and row["label"] == liked]
            each = min(REVIEWS_EACH, len(group) // 2)
            chosen = group[:each] if half == "fit" else group[each : 2 * each]
            sample += [(category, liked, row["review"].lstrip("\ufeff")) for row in chosen]
    return sample
