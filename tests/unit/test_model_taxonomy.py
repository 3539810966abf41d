from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import PackError
from model.taxonomy import PACKS, load_packs

GOOD = """
name: shop
facets:
  interests:
    kind: multi
    sources: [chat, order]
    half_life: 30d
    threshold: 0.5
    top_k: 2
    labels:
      garden: {en: plant pots, zh: [花盆, 园艺]}
      toys: {en: toys, zh: 玩具}
"""


def write(folder: Path, text: str, name: str = "shop.yaml") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def test_shipped_packs_combine_and_share_included_facets_once() -> None:
    packs = load_packs(["ecommerce", "finance"])
    names = [facet.name for pack in packs for facet in pack.facets]
    assert names == ["interests", "needs", "banking_needs", "products", "risk", "sentiment"]
    for pack in packs:
        for facet in pack.facets:
            assert facet.half_life_ms >= 86_400_000
            assert all(len(phrases) >= 2 for phrases in facet.phrases)  # English and Chinese


def test_every_shipped_file_loads_alone() -> None:
    for file in PACKS.glob("*.yaml"):
        assert load_packs([file.stem])


def test_a_users_own_file(tmp_path: Path) -> None:
    (pack,) = load_packs([write(tmp_path, GOOD)])
    (facet,) = pack.facets
    assert facet.labels == ("garden", "toys")
    assert facet.phrases == (("plant pots", "花盆", "园艺"), ("toys", "玩具"))
    assert facet.half_life_ms == 30 * 86_400_000
    assert facet.sources == ("chat", "order")


def test_include_takes_shipped_names_and_neighbouring_files(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("interests", "hobbies"), "other.yaml")
    packs = load_packs([write(tmp_path, GOOD + "include: [common, other.yaml]\n")])
    assert [facet.name for pack in packs for facet in pack.facets] == ["interests", "sentiment", "hobbies"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: multi", "kind: many", ["'interests'", "multi", "kind"]),
        ("half_life: 30d", "half_life: 30 days", ["'interests'", "30 days", "30d"]),
        ("half_life: 30d", "half_life: 0d", ["'interests'", "0d"]),
        ("threshold: 0.5", "threshold: 1.5", ["'interests'", "threshold", "< 1"]),
        ("top_k: 2", "top_k: 0", ["'interests'", "top_k", ">= 1"]),
        ("[chat, order]", "[chat, mail]", ["'interests'", "mail", "sources"]),
        ("[chat, order]", "[]", ["'interests'", "sources"]),
        ("{en: toys, zh: 玩具}", "{en: toys}", ["'interests'", "'toys'", "zh"]),
        ("{en: toys, zh: 玩具}", "{en: toys, zh: 玩具, fr: jouets}", ["'toys'", "fr"]),
        ("{en: toys, zh: 玩具}", "{en: '', zh: 玩具}", ["'toys'", "en"]),
        ("toys:", "Toys for kids:", ["'Toys for kids'", "lower-case"]),
        ("top_k: 2", "top_k: 2\n    topk: 3", ["'interests'", "topk", "top_k"]),
        ("top_k: 2", "top_k: 2\n    background: true", ["'interests'", "background", "single"]),
        ("name: shop", "title: shop", ["title"]),
        ("interests:", "Interests:", ["'Interests'", "lower-case"]),
        ("kind: multi", "kind: [", ["YAML"]),
    ],
)
def test_a_broken_rule_is_named_with_file_facet_and_label(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(PackError) as caught:
        load_packs([write(tmp_path, GOOD.replace(old, new))])
    for word in ["shop.yaml", *said]:
        assert word in str(caught.value)


def test_one_facet_defined_twice_differently_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path, GOOD)
    same = write(tmp_path, GOOD.replace("name: shop", "name: twin"), "twin.yaml")
    other = write(tmp_path, GOOD.replace("top_k: 2", "top_k: 3"), "other.yaml")
    assert len(load_packs([first, same])) == 2
    with pytest.raises(PackError, match=r"'interests'.*shop\.yaml.*other\.yaml"):
        load_packs([first, other])


def test_an_unknown_pack_names_the_shipped_ones() -> None:
    with pytest.raises(PackError, match=r"'farming'.*common, ecommerce, finance"):
        load_packs(["farming"])
