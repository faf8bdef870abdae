"""The statistics on disk, and the artifact from a calibration set on disk."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedModel

from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, extremes
from plumbline.activation_stats.store import HEADER, TENSORS, load, save
from plumbline.activation_stats.summary import summary as summary_of
from plumbline.artifact import read_json, sha256_file, write_json, write_table
from plumbline.base_model.folder import base_model_digest
from plumbline.calibration_set.reader import SCHEMA, set_digest
from tests.helpers.checkpoint import checkpoint

Sample = tuple[str, list[int]]
PROVENANCE = {"base_model": {"name": "tiny", "revision": None}, "calibration_set": "c" * 64}


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def stats(request: pytest.FixtureRequest, llama: Any, samples: list[Sample]) -> ActivationStats:
    model: PreTrainedModel = llama(request.param)
    return collect(model, samples, StatisticsParams(), base_model_digest="model", fingerprint="tokenizer")


def test_what_is_loaded_is_what_was_saved(stats: ActivationStats, tmp_path: Path) -> None:
    save(stats, tmp_path, PROVENANCE)
    loaded = load(tmp_path)
    for field in ("base_model_digest", "fingerprint", "settings", "sample_ids", "unreached"):
        assert getattr(loaded, field) == getattr(stats, field)
    assert torch.equal(loaded.sample_tokens, stats.sample_tokens)
    assert list(loaded.sites) == list(stats.sites)
    for name, x in stats.sites.items():
        y = loaded.sites[name]
        assert x.members == y.members
        assert (x.histogram.first, x.histogram.mantissa_bits, x.histogram.dtype) == (
            y.histogram.first, y.histogram.mantissa_bits, y.histogram.dtype,
        )  # fmt: skip
        pairs = [(x.histogram.counts, y.histogram.counts)]
        pairs += [(a, getattr(y, what)) for what, a in vars(x).items() if isinstance(a, torch.Tensor)]
        assert len(pairs) == 11
        for left, right in pairs:
            assert left.dtype == right.dtype and torch.equal(left, right)
        assert extremes(stats, name) == extremes(loaded, name)


def test_the_header_says_what_is_inside(stats: ActivationStats, tmp_path: Path) -> None:
    assert save(stats, tmp_path, PROVENANCE) == read_json(tmp_path / HEADER)
    header = read_json(tmp_path / HEADER)
    assert header["format"] == 2
    assert header["base_model"] == {"name": "tiny", "revision": None, "digest": "model"}
    assert header["calibration_set"] == "c" * 64
    assert (header["samples"], header["tokens"], sum(header["sample_tokens"])) == (6, 158, 158)
    assert header["settings"] == {
        "hessian": True,
        "normalization": "token",
        "tokens": "all",
        "experts": "routed",
        "mantissa_bits": 4,
        "histogram_share": 1.0,
        "top_k": 8,
        "outputs": [],
        "cache": False,
        "shards": 1,
        "ignore": ["lm_head"],
    }
    site = header["sites"]["model.layers.0.mlp.gate_proj"]
    assert site["members"] == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
    assert (site["width"], site["tokens"], site["samples"]) == (32, 158, 6)


def test_same_statistics_same_bytes(llama: Any, samples: list[Sample], tmp_path: Path) -> None:
    digests = set()
    for number, order in enumerate((samples, samples[::-1])):
        model = llama(torch.bfloat16)
        found = collect(model, order, StatisticsParams(), base_model_digest="model", fingerprint="tokenizer")
        (tmp_path / str(number)).mkdir()
        save(found, tmp_path / str(number), PROVENANCE)
        digests.add(tuple(sha256_file(tmp_path / str(number) / name) for name in (HEADER, TENSORS)))
    assert len(digests) == 1


def test_counts_beyond_a_byte_survive(stats: ActivationStats, tmp_path: Path) -> None:
    name, site = next(iter(stats.sites.items()))
    for largest in (2**8 - 1, 2**8, 2**15, 2**31, 2**40):
        counts = site.histogram.counts.clone()
        counts[0, 0] = largest
        changed = replace(site, histogram=replace(site.histogram, counts=counts))
        save(replace(stats, sites={name: changed}), tmp_path, PROVENANCE)
        assert torch.equal(load(tmp_path).sites[name].histogram.counts, counts)


def test_damaged_or_foreign_files_are_refused(stats: ActivationStats, tmp_path: Path) -> None:
    save(stats, tmp_path, PROVENANCE)
    header = read_json(tmp_path / HEADER)
    write_json(tmp_path / HEADER, {**header, "format": 1})
    with pytest.raises(ValueError, match="found format 1, this version reads 2; collect anew"):
        load(tmp_path)
    first = next(iter(header["sites"].values()))
    write_json(tmp_path / HEADER, {**header, "sites": {"elsewhere": first}})
    with pytest.raises(ValueError, match=r"not the one that header\.json describes .*elsewhere"):
        load(tmp_path)
    write_json(tmp_path / HEADER, header)
    (tmp_path / TENSORS).write_bytes((tmp_path / TENSORS).read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no stats.safetensors; restore"):
        load(tmp_path)


@pytest.fixture
def project(tmp_path: Path, llama: Any) -> Path:
    """A project with a base model and a calibration set of three samples, in an order that is not that of the ids."""
    llama(torch.bfloat16).save_pretrained(tmp_path / "base")
    rng = np.random.default_rng(0)
    rows = []
    for position, size in enumerate((5, 64, 17)):
        ids = rng.integers(0, 50, size).astype("<i4")
        rows.append(
            {
                "position": position,
                "sample_id": hashlib.sha256(ids.tobytes()).hexdigest(),
                "doc_ids": [str(position)],
                "domain": "d",
                "source": "s",
                "n_tokens": size,
                "input_ids": ids.tolist(),
                "reason": "{}",
                "parents": [],
            }
        )
    (tmp_path / "set").mkdir()
    write_table(tmp_path / "set" / "samples.parquet", pa.Table.from_pylist(rows, SCHEMA))
    manifest = {
        "fingerprint": "f" * 64,
        "digest": set_digest([row["sample_id"] for row in rows], "f" * 64),
        "samples": 3,
        "tokens": 86,
    }
    write_json(tmp_path / "set" / "manifest.json", manifest)
    (tmp_path / "out").mkdir()
    return tmp_path


def test_the_artifact(project: Path) -> None:
    def build(name: str) -> dict[str, Any]:
        base = checkpoint(name, project)
        build_activation_stats(StatisticsParams(), base, project / "set", project / "out")
        return summary_of(project / "out")

    summary = build("base")
    assert sorted(path.name for path in (project / "out").iterdir()) == [HEADER, TENSORS]
    header, manifest = read_json(project / "out" / HEADER), read_json(project / "set" / "manifest.json")
    assert header["base_model"] == {"name": "base", "revision": None, "digest": base_model_digest(project / "base")}
    assert (header["fingerprint"], header["calibration_set"]) == (manifest["fingerprint"], manifest["digest"])
    stats = load(project / "out")
    largest = max((e for site in stats.sites for e in extremes(stats, site)), key=lambda e: abs(e.value))
    assert summary["largest_value"] == round(largest.value, 6)
    assert summary["largest_sample"] == largest.sample_id
    assert (summary["samples"], summary["tokens"], summary["sites"], summary["layers"]) == (3, 86, 8, 14)
    assert summary["unreached"] == []

    build(str(project / "base"))  # an absolute path names a place on this machine: it stays out of the artifact
    assert read_json(project / "out" / HEADER) == header


def test_a_set_with_other_tokens_than_its_manifest_says_is_refused(project: Path) -> None:
    manifest = read_json(project / "set" / "manifest.json")
    write_json(project / "set" / "manifest.json", {**manifest, "tokens": 87})
    with pytest.raises(ValueError, match=r"found 3 samples with 86 tokens, manifest\.json says 3 with 87; restore"):
        build_activation_stats(StatisticsParams(), checkpoint("base", project), project / "set", project / "out")
