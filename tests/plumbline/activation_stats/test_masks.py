"""`statistics.tokens: assistant`: what is masked out reaches no statistic; what is left is as if it stood alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.masks import counted, masks_of
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, extremes, merge
from plumbline.activation_stats.source import read_source
from plumbline.artifact import write_json, write_table
from plumbline.calibration_set.reader import SCHEMA, set_digest
from tests.helpers.mixtures import inputs_of_experts, make_mixture

Sample = tuple[str, list[int]]
SETTINGS = StatisticsParams(tokens="assistant")


def collected(model: Any, samples: list[Sample], masks: dict[str, Tensor] | None, **settings: Any) -> ActivationStats:
    params = StatisticsParams(tokens="assistant", **settings)
    return collect(model, samples, params, base_model_digest="0" * 64, fingerprint="f", masks=masks)


@pytest.fixture(scope="module")
def masks(samples: list[Sample]) -> dict[str, Tensor]:
    """About half of the tokens; none of the second sample, and the fourth has no mask."""
    rng = np.random.default_rng(5)
    found = {name: torch.from_numpy(rng.random(len(ids)) < 0.5) for name, ids in samples}
    found[samples[1][0]][:] = False
    del found[samples[3][0]]
    return found


def rows_that_count(masks: dict[str, Tensor], name: str, tokens: int) -> Any:
    return np.flatnonzero(masks[name].numpy()) if name in masks else np.arange(tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_those_of_the_tokens_that_count(
    dtype: torch.dtype, llama: Any, samples: list[Sample], capture: Any, masks: dict[str, Tensor]
) -> None:
    model = llama(dtype)
    stats = collected(model, samples, masks)
    seen = capture(model, samples)
    kept = [len(rows_that_count(masks, name, len(ids))) for name, ids in samples]
    assert stats.sample_tokens.tolist() == kept and 0 in kept
    for site_name, site in stats.sites.items():
        parts = {name: x[rows_that_count(masks, name, len(x))] for name, x in seen[site_name].items()}
        x = np.concatenate(list(parts.values()))
        assert site.sample_tokens.tolist() == kept
        np.testing.assert_allclose(site.hessian, x.T @ x, rtol=1e-4, atol=1e-4 * np.abs(x.T @ x).max())
        np.testing.assert_allclose(site.sum, x.sum(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(site.sum_abs, np.abs(x).sum(0), rtol=1e-5)
        np.testing.assert_allclose(site.sum_sq, (x**2).sum(0), rtol=1e-5)
        assert np.array_equal(site.min.numpy(), x.min(0)) and np.array_equal(site.max.numpy(), x.max(0))
        assert int(site.histogram.counts.sum()) == x.size
        largest = extremes(stats, site_name)[0]
        assert abs(largest.value) == np.abs(x).max()
        where = seen[site_name][largest.sample_id][largest.position]  # the position in the sample, not among the kept
        assert where[largest.channel] == largest.value


def test_a_mask_of_everything_is_no_mask(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    everything = {name: torch.ones(len(ids), dtype=torch.bool) for name, ids in samples}
    with_masks, without = collected(model, samples, everything), collected(model, samples, None)
    for name, site in without.sites.items():
        other = with_masks.sites[name]
        for what in ("hessian", "sum", "sum_sq", "sample_min", "sample_max", "top_values", "top_positions"):
            assert torch.equal(getattr(site, what), getattr(other, what)), what


def test_masks_reach_experts_and_outputs(samples: list[Sample], masks: dict[str, Tensor]) -> None:
    model = make_mixture("mixtral")
    stats = collected(model, samples, masks, outputs=("v_proj",), shards=3)
    for name, parts in inputs_of_experts(model, samples).items():
        kept = {sample: x[np.isin(at, rows_that_count(masks, sample, 64))] for sample, (x, at) in parts.items()}
        x = np.concatenate(list(kept.values()))
        if not len(x):
            assert name in stats.unreached
            continue
        site = stats.sites[name]
        assert site.sample_tokens.tolist() == [len(kept.get(sample, [])) for sample, _ in samples]
        np.testing.assert_allclose(site.hessian, x.T @ x, rtol=1e-3, atol=1e-4 * np.abs(x.T @ x).max())
    output = stats.sites["model.layers.1.self_attn.v_proj:output"]
    assert output.sample_tokens.tolist() == stats.sample_tokens.tolist()


def test_rows_that_cannot_be_traced_to_tokens_are_refused(llama: Any, samples: list[Sample]) -> None:
    class Selected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(32, 32)])

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[0](x.view(-1, 32)).view_as(x)

    model = llama(torch.float32)
    model.model.layers[1].mlp = Selected()
    mask = {samples[0][0]: torch.tensor([True] * 3 + [False] * 4)}
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.experts.0.*not known.*statistics.ignore"):
        collected(model, samples[:1], mask)
    assert collected(model, samples[:1], mask, ignore=("re:.*experts",)).sites


def test_statistics_of_other_tokens_do_not_combine(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.float32)
    plain = collect(model, samples[:1], StatisticsParams(), base_model_digest="0" * 64, fingerprint="f")
    with pytest.raises(ValueError, match="different origin"):
        merge(plain, collected(model, samples[1:], None))


def a_set(folder: Path, spans: list[list[int] | None], drop: bool = False) -> Path:
    folder.mkdir()
    rows = [
        {"position": n, "sample_id": f"{n:064x}", "n_tokens": 6, "input_ids": [n] * 6, "assistant_spans": part}
        for n, part in enumerate(spans)
    ]
    table = pa.Table.from_pylist(rows, SCHEMA)
    write_table(folder / "samples.parquet", table.drop_columns(["assistant_spans"]) if drop else table)
    digest = set_digest([str(row["sample_id"]) for row in rows], "f")
    manifest = {"digest": digest, "fingerprint": "f", "samples": len(rows), "tokens": 6 * len(rows)}
    write_json(folder / "manifest.json", manifest)
    return folder


def test_masks_of_a_stored_set(tmp_path: Path) -> None:
    folder = a_set(tmp_path / "set", [[0, 2, 5, 6], None, []])
    assert masks_of(folder, StatisticsParams()) is None
    found = masks_of(folder, SETTINGS)
    assert found is not None and {name: mask.tolist() for name, mask in found.items()} == {
        f"{0:064x}": [True, True, False, False, False, True],
        f"{2:064x}": [False] * 6,
    }
    source = read_source(folder, SETTINGS)  # what is collected from
    assert source.masks is not None and {name: mask.tolist() for name, mask in source.masks.items()} == {
        name: mask.tolist() for name, mask in found.items()
    }
    assert read_source(folder, StatisticsParams()).masks is None
    assert counted(found, 3, 18) == {"counted_tokens": 9, "samples_without_mask": 1} and counted(None, 3, 18) == {}


def test_sets_that_say_nothing_or_have_no_assistant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not say what the assistant wrote; tokenize and choose"):
        masks_of(a_set(tmp_path / "old", [None], drop=True), SETTINGS)
    with pytest.raises(ValueError, match="no token of calibration set users was written by an assistant"):
        masks_of(a_set(tmp_path / "users", [[], []]), SETTINGS)
