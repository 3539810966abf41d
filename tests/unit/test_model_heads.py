from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from model.errors import ModelCorrupt, PackError
from model.heads import (
    Array,
    Calibration,
    Head,
    calibration_path,
    features,
    phrase_head,
    phrases_digest,
    read_calibrations,
    read_heads,
    write_heads,
)
from model.taxonomy import Facet, Pack

DIM = 8
CENTER = np.full(DIM, 0.1, np.float32)


def facet(kind: str = "single", background: bool = True) -> Facet:
    return Facet(
        name="needs",
        kind=kind,  # type: ignore[arg-type]
        sources=("chat",),
        half_life_ms=1000,
        threshold=0.5,
        top_k=1,
        background=background,
        labels=("a", "b"),
        phrases=(("one", "two"), ("three",)),
    )


def embed(texts: Sequence[str]) -> Array:
    rows = np.stack([np.random.default_rng(len(text) * 100 + ord(text[0])).normal(size=DIM) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_single_adds_up_to_one_less_the_background() -> None:
    found = features(embed(["one", "xyz"]), CENTER)
    closed = phrase_head(facet(background=False), embed, CENTER, None).probabilities(found)
    assert closed.sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    opened = phrase_head(facet(), embed, CENTER, None).probabilities(found)
    assert opened.shape == (2, 2)
    assert (opened.sum(axis=1) < 1).all()
    assert opened[0].argmax() == 0  # the text is a phrase of "a"


def test_calibration_is_slope_times_similarity_plus_bias() -> None:
    calibration = Calibration(slope=3.0, softness=0.1, bias={"a": -1.0, "b": 0.5}, phrases="")
    head = phrase_head(facet("multi", background=False), embed, CENTER, calibration)
    found = features(embed(["anything"]), CENTER)
    own = found @ features(embed(["three"]), CENTER).T  # "b" has this one phrase: no soft maximum
    assert head.probabilities(found)[0, 1] == pytest.approx(1 / (1 + np.exp(-(3 * own[0, 0] + 0.5))), abs=1e-6)


def test_competition_takes_from_every_label_what_the_others_have() -> None:
    alone = Calibration(slope=3.0, softness=0.1, bias={"a": 0.0, "b": 0.0}, phrases="")
    found = features(embed(["anything", "else"]), CENTER)
    many = facet("multi", background=False)
    free = phrase_head(many, embed, CENTER, alone).probabilities(found)
    full = phrase_head(many, embed, CENTER, msgspec.structs.replace(alone, competition=1.0)).probabilities(found)
    odds = free / (1 - free)
    assert full / (1 - full) == pytest.approx(odds / odds.sum(axis=1, keepdims=True), rel=1e-4)  # softmax


def test_the_joint_similarity_lies_between_mean_and_maximum() -> None:
    head = phrase_head(facet(background=False), embed, CENTER, None)
    found = features(embed(["anything", "else"]), CENTER)
    each = found @ features(embed(["one", "two"]), CENTER).T
    joint = head.similarities(found)[:, 0]
    assert (joint <= each.max(axis=1) + 1e-6).all()
    assert (joint >= each.mean(axis=1) - 1e-6).all()


def test_trained_heads_come_back_as_written(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
    head = Head(facet(), weight, (1, 1, 1), np.array([0.1, -0.2, 0.3], np.float32), slope=2.0)
    write_heads(tmp_path, [head], CENTER)
    found = read_heads(tmp_path, DIM)
    assert found is not None
    (back,), center = found
    texts = features(embed(["p", "q"]), center)
    assert back.probabilities(texts) == pytest.approx(head.probabilities(texts), abs=1e-6)
    assert back.facet.labels == ("a", "b")
    assert back.facet.half_life_ms == 1000
    assert read_heads(tmp_path / "absent", DIM) is None


def test_heads_that_do_not_fit_are_named(tmp_path: Path) -> None:
    head = Head(facet(), np.zeros((3, DIM), np.float32), (1, 1, 1), np.zeros(3, np.float32))
    write_heads(tmp_path, [head], CENTER)
    with pytest.raises(ModelCorrupt, match=r"'needs'.*weight \[3, 16\].*\(3, 8\)"):
        read_heads(tmp_path, 16)
    listing = json.loads((tmp_path / "heads.json").read_text())
    listing[0]["labels"].append("c")
    (tmp_path / "heads.json").write_text(json.dumps(listing))
    with pytest.raises(ModelCorrupt, match=r"'needs'.*weight \[4, 8\]"):
        read_heads(tmp_path, DIM)
    (tmp_path / "heads.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelCorrupt, match=r"heads\.safetensors"):
        read_heads(tmp_path, DIM)


def test_a_calibration_counts_only_for_its_encoder_and_its_phrases(tmp_path: Path) -> None:
    pack = Pack("shop", tmp_path / "shop.yaml", (facet(),))
    fitted = {"slope": 2.0, "softness": 0.1, "bias": {"a": 0.0, "b": 1.0}, "background": 3.0}
    fitted["phrases"] = phrases_digest(facet())
    path = calibration_path(pack)
    assert path == tmp_path / "shop.calibration.json"
    assert read_calibrations(pack, "x") == {}
    path.write_text(json.dumps({"encoder": "x", "facets": {"needs": fitted}}))
    assert read_calibrations(pack, "x")["needs"].background == 3.0
    assert read_calibrations(pack, "y") == {}
    path.write_text(json.dumps({"encoder": "x", "facets": {"needs": fitted | {"phrases": "others"}}}))
    assert read_calibrations(pack, "x") == {}
    path.write_text("{}")
    with pytest.raises(PackError, match=r"shop\.calibration\.json.*trainer\.calibrate"):
        read_calibrations(pack, "x")
