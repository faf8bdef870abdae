"""Which samples set the ranges, against the statistics themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.activation_stats import store
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, extremes
from plumbline.artifact import read_json, write_json, write_table
from plumbline.calibration_report.extremes import leading_samples, read_extremes, sentence
from plumbline.calibration_set.reader import set_digest


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, ActivationStats]:
    """Statistics of six samples on a model of eleven layers, on disk beside their calibration set."""
    root = tmp_path_factory.mktemp("extremes")
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 11, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=32, initializer_range=0.5, **sizes))
    rng = np.random.default_rng(0)
    samples = [(f"sample{number}", rng.integers(0, 32, 5 + 2 * number).tolist()) for number in range(6)]
    stats = collect(model.eval(), samples, StatisticsParams(), base_model_digest="b", fingerprint="f")
    names = [name for name, _ in reversed(samples)]  # a set has an order of its own
    digest = set_digest(names, "f")
    for folder in ("set", "statistics"):
        (root / folder).mkdir()
    store.save(stats, root / "statistics", {"calibration_set": digest})
    columns = {"sample_id": names, "doc_ids": [[f"document of {name}"] for name in names], "domain": ["code"] * 6}
    write_table(root / "set" / "samples.parquet", pa.table(columns))
    write_json(root / "set" / "manifest.json", {"digest": digest, "fingerprint": "f"})
    return root / "statistics", root / "set", stats


def test_every_site_has_its_largest_magnitude_and_the_sample_it_came_from(collected) -> None:
    statistics, calibration_set, stats = collected
    found = read_extremes(statistics, calibration_set)
    assert len(found) == len(stats.sites) > 40
    layers = [int(row["site"].split(".")[2]) for row in found if row["site"].startswith("model.layers")]
    assert layers == sorted(layers)  # 2 before 10
    for row in found:
        first = extremes(stats, row["site"])[0]
        assert (row["value"], row["sample_id"], row["position"], row["channel"]) == (
            pytest.approx(first.value),
            first.sample_id,
            first.position,
            first.channel,
        )
        assert row["documents"] == [f"document of {first.sample_id}"] and row["domain"] == "code"
        site = stats.sites[row["site"]]
        largest = sorted(torch.maximum(-site.sample_min, site.sample_max).amax(dim=1).tolist())
        assert row["next"] == pytest.approx(largest[-2] / largest[-1])

    leading = leading_samples(found)
    assert sum(one["sites"] for one in leading) == len(found)
    assert [one["sites"] for one in leading] == sorted((one["sites"] for one in leading), reverse=True)
    assert min(one["next"] for one in leading) == min(row["next"] for row in found)
    said = sentence("choice", found, 6)
    assert f"at {len(found)} layer inputs come from {len(leading)} of 6 samples" in said
    assert min(found, key=lambda row: row["next"])["site"] in said


def test_statistics_of_another_set_are_refused(collected) -> None:
    statistics, calibration_set, _ = collected
    header = read_json(statistics / store.HEADER)
    write_json(statistics / store.HEADER, {**header, "calibration_set": "other"})
    with pytest.raises(ValueError, match="statistics are of a set with digest other"):
        read_extremes(statistics, calibration_set)
    write_json(statistics / store.HEADER, header)
