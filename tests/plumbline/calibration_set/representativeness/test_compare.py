"""From artifacts on disk to representativeness.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.representativeness import compare
from plumbline.calibration_set.representativeness.compare import prepared
from tests.helpers.sample_features import write_features
from tests.helpers.tokenized_samples import two_domains, write_samples

Choose = Callable[..., Path]


def found(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((path / "representativeness.json").read_text())
    return result


def test_bytes_do_not_depend_on_threads_or_on_what_was_prepared_before(tmp_path: Path, choose: Choose) -> None:
    samples = write_samples(tmp_path / "samples", two_domains(), shards=2)
    features = write_features(tmp_path / "features", two_domains())
    outs = []
    for threads in (1, 2):
        compare._prepared.cache_clear()
        with threadpool_limits(threads):
            outs.append(choose(samples, features, strategy="random", n=20))
    compare._prepared.cache_clear()
    choose(samples, features, strategy="random", n=33)
    outs.append(choose(samples, features, strategy="random", n=20))
    for name in ("representativeness.json", "representativeness.png", "lengths.png"):
        assert len({(out / name).read_bytes() for out in outs}) == 1


def test_pool_and_production_are_prepared_once_for_many_choices_and_again_when_they_change(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", two_domains())
    first = prepared(Sources(samples, None))
    assert prepared(Sources(samples, None)) is first
    assert prepared(Sources(samples, write_features(tmp_path / "features", two_domains()))) is not first
    other = prepared(Sources(samples, None))
    (samples / "accounting.json").rename(tmp_path / "kept.json")
    for path in samples.rglob("*.parquet"):
        path.unlink()
    changed = write_samples(tmp_path / "changed", two_domains()[:-1])
    changed.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.*"):
        target = samples / path.relative_to(tmp_path / "moved")
        target.write_bytes(path.read_bytes())
    assert prepared(Sources(samples, None)) is not other


def test_without_features_embeddings_and_activations_say_why(tmp_path: Path, choose: Choose) -> None:
    block = found(choose(write_samples(tmp_path / "samples", two_domains()), strategy="random", n=20))["references"][
        "tuning"
    ]
    assert set(block["unmeasured"]) == {"embeddings", "activations"}
    assert "token_jsd" in block["metrics"]
    assert "run sample_features" in block["sentences"][-1]


def test_switched_off_signatures_leave_the_rest(tmp_path: Path, choose: Choose) -> None:
    samples, features = (
        write_samples(tmp_path / "samples", two_domains()),
        write_features(tmp_path / "features", two_domains()),
    )
    block = found(choose(samples, features, strategy="random", n=20))["references"]["tuning"]
    assert "features.signatures: null" in block["unmeasured"]["activations"]
    assert "embedding_energy" in block["metrics"]


def test_a_production_sample_is_what_counts_and_tuning_is_compared_too(tmp_path: Path, choose: Choose) -> None:
    everything = two_domains(production=True)
    samples, features = write_samples(tmp_path / "samples", everything), write_features(tmp_path / "f", everything)
    result = found(choose(samples, features, strategy="random", n=20))
    assert result["primary"] == "production"
    assert list(result["references"]) == ["production", "tuning"]
    # no random draw of this pool has a token of production's domain: far, but not farther than random
    production = result["references"]["production"]["metrics"]
    assert production["domain_mix"]["value"] == 1
    assert production["domain_mix"]["percentile"] == 50
    assert result["references"]["tuning"]["metrics"]["domain_mix"]["value"] < 0.5
    assert "production" not in result["flagged"]


def test_a_cut_sample_is_compared_by_its_own_tokens(tmp_path: Path, choose: Choose) -> None:
    samples, features = (
        write_samples(tmp_path / "samples", two_domains()),
        write_features(tmp_path / "features", two_domains()),
    )
    result = found(choose(samples, features, strategy="length_stratified", n=20, buckets=[8, 16]))
    block = result["references"]["tuning"]
    assert {"tokens_beyond_longest", "log_length_ks"} <= set(result["flagged"])
    # the embedder that the features name is not there: what needs it is left out, with the reason
    assert "nowhere" in block["unmeasured"]["embeddings"]
    assert "embedding_energy" not in block["metrics"]


def test_an_empty_tuning_split_is_said(tmp_path: Path, choose: Choose) -> None:
    only_pool = [row for row in two_domains() if row["split"] == "pool"]
    out = choose(write_samples(tmp_path / "samples", only_pool), strategy="random", n=5)
    result = found(out)
    assert result["primary"] is None
    assert "tuning split is empty" in result["sentences"][0]
    assert not (out / "lengths.png").exists()


@pytest.mark.parametrize("written", [False, True])
def test_joined_samples_are_embedded_anew_in_their_place(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.calibration_set.select import joined
    from plumbline.calibration_set.strategies.base import Piece, Selection

    samples, features = (
        write_samples(tmp_path / "samples", two_domains()),
        write_features(tmp_path / "features", two_domains()),
    )
    sources = Sources(samples, features)
    pool = sources.pool()
    new = {1: np.array([1, 2, 3], np.int32)} if written else {}
    pieces = {} if written else {1: (Piece(4, 0, 5), Piece(6, 1, 9))}
    selection = Selection(np.array([2, -1 if written else 4, 0]), [{}] * 3, pieces, new)
    table = joined(pool, selection, "mine")
    seen = []

    def embed(_: Any, __: Any, input_ids: list[np.ndarray]) -> np.ndarray:
        seen.extend(ids.tolist() for ids in input_ids)
        return np.full((len(input_ids), 8), 0.25, np.float16)

    monkeypatch.setattr(compare, "_embed", embed)
    part, unmeasured = compare._part_of_set(sources, prepared(sources), pool, selection, table)
    assert unmeasured == {}
    assert part.embeddings is not None
    assert seen == [table["input_ids"][1].as_py()]
    assert part.embeddings[[0, 2]] == pytest.approx(pool.embeddings([2, 0]).astype(float))
    assert (part.embeddings[1] == 0.25).all()
    assert part.domain_tokens.sum(axis=1).tolist() == [pool.lengths[2], 0 if written else 13, pool.lengths[0]]
