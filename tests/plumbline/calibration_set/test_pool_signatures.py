"""How a pool gets at activation signatures: stored ones are read, missing ones cost one forward pass, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plumbline.calibration_set import pool as module
from plumbline.calibration_set.pool import Sources
from plumbline.sample_features import probe as probe_module
from plumbline.sample_features.measure import measure
from plumbline.sample_features.params import SignatureParams
from plumbline.sample_features.sign import write_signatures
from plumbline.sample_features.signature_reader import read_probe
from plumbline.sample_features.signatures import PER_SAMPLE
from tests.helpers.checkpoint import checkpoint
from tests.helpers.forward_passes import count_forwards
from tests.helpers.tokenized_samples import FINGERPRINT, sample, write_samples

SIZES = {"pool": 4, "reference": 2, "sites": 3, "cells": 4, "sketch": 3, "pooled": 5}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20_000,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def sources(tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    from plumbline.artifact import write_json

    monkeypatch.setattr(probe_module, "TOKENS", 64)
    rows = [
        sample(number, 5 + number, split)
        for number, split in enumerate(["pool"] * 9 + ["tuning"] * 3 + ["production"] * 3)
    ]
    samples = write_samples(tmp_path / "samples", rows, shards=2)
    features = tmp_path / "features"
    features.mkdir()
    base = checkpoint(base_model)
    splits = ("pool", "tuning", "production")
    entry = write_signatures(SignatureParams(**SIZES), splits, base, samples, FINGERPRINT, features, None)
    write_json(features / "manifest.json", {"fingerprint": FINGERPRINT, "signatures": entry})
    return Sources(samples, features, base)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_forwards(monkeypatch)


def test_the_lowest_ids_are_signed_in_every_split(sources: Sources) -> None:
    pool = sources.pool()
    assert pool.signed.tolist() == [0, 1, 2, 3]  # rows are sorted by id
    assert pool.tuning.signed.tolist() == [0, 1]
    assert pool.production is not None and pool.reference.signed.tolist() == [0, 1]
    assert pool.subset(np.array([1, 3, 5])).signed.tolist() == [0, 1]


def test_stored_ones_are_read_and_no_model_is_loaded(sources: Sources, forwards: list[int]) -> None:
    pool = sources.pool()
    found = pool.signatures(pool.signed)
    assert found.tokens.tolist() == pool.lengths[:4].tolist()
    assert not forwards


def test_missing_ones_cost_one_forward_pass_once(sources: Sources, forwards: list[int]) -> None:
    pool = sources.pool()
    asked = np.array([8, 2, 5, 0])
    found = pool.signatures(asked)
    assert sorted(forwards) == sorted(pool.lengths[[8, 5]].tolist())
    assert found.sample_ids == tuple(pool.names(asked))
    again = pool.signatures(np.array([5, 8]))
    assert len(forwards) == 2
    assert np.array_equal(again.sketch, found.sketch[[2, 0]])
    assert len(pool.signatures([])) == 0
    expected = measure(
        sources.load_model(), zip(pool.names(asked), pool.input_ids(asked), strict=True), read_probe(sources.features)
    )
    for name in PER_SAMPLE:
        assert np.array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


def test_a_sample_asked_for_twice(sources: Sources, forwards: list[int]) -> None:
    pool = sources.pool()
    found = pool.signatures([7, 7, 1, 1])
    assert len(forwards) == 1
    assert found.sample_ids == tuple(pool.names([7, 7, 1, 1]))


def test_memory_is_bounded(sources: Sources, forwards: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    pool = sources.pool()
    pool.signatures([4, 5, 6, 7])
    forwards.clear()
    pool.signatures([6, 7])
    assert not forwards
    pool.signatures([4])
    assert len(forwards) == 1


def test_samples_of_no_corpus_are_measured_in_the_order_given(sources: Sources) -> None:
    given = {"b": np.array([1, 7, 9], np.int32), "a": np.array([1, 2], np.int32)}
    found = sources.measure(given)
    assert found.sample_ids == ("b", "a") and found.tokens.tolist() == [3, 2]


def test_another_base_model_is_refused(sources: Sources, base_model: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(base_model, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    changed = Sources(sources.samples, sources.features, checkpoint(other))
    pool = changed.pool()
    with pytest.raises(ValueError, match="measured activations of the base model .*; run sample_features again"):
        pool.signatures([8])


def test_without_features_or_signatures_it_says_what_to_do(sources: Sources) -> None:
    with pytest.raises(ValueError, match="needs activation signatures; run sample_features first"):
        _ = Sources(sources.samples, None, sources.base).pool().signed
    assert sources.features is not None
    (sources.features / "manifest.json").write_text(f'{{"fingerprint": "{FINGERPRINT}", "signatures": null}}')
    bare = Sources(sources.samples, sources.features, sources.base).pool()
    with pytest.raises(ValueError, match="features.signatures: null"):
        _ = bare.signed
    with pytest.raises(ValueError, match="features.signatures: null"):
        bare.signatures([0])
