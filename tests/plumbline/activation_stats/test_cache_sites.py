"""Statistics of keys and values against compressed-tensors' own hooks, without padding, and merged like all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.modeling.kvcache import initialize_hooked_kv_cache, register_key_hook, register_value_hook
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, merge, quantile, retract
from plumbline.activation_stats.starved import starved_sites
from plumbline.activation_stats.store import HEADER, load, save
from plumbline.artifact import read_json

Sample = tuple[str, list[int]]
Build = Callable[[torch.dtype], PreTrainedModel]
WITH = StatisticsParams(cache=True)


def collected(model: PreTrainedModel, samples: list[Sample], **more: Any) -> ActivationStats:
    return collect(model, samples, WITH, base_model_digest="m", fingerprint="t", **more)


@torch.no_grad()
def hooked(model: PreTrainedModel, samples: list[Sample]) -> dict[str, dict[str, np.ndarray]]:
    """By site and sample (tokens, heads * head width) in float64, from the hooks of compressed-tensors."""
    seen: dict[str, dict[str, np.ndarray]] = {}
    current = ""
    for name, module in model.named_modules():
        if not name.endswith("self_attn"):
            continue
        initialize_hooked_kv_cache(model, module)

        def keep(site: str) -> Callable[[Any, Tensor], None]:
            def hook(_: Any, states: Tensor) -> None:
                rows = states[0].double().numpy()  # (heads, tokens, head width)
                seen.setdefault(site, {})[current] = np.concatenate(list(rows), axis=1)

            return hook

        register_key_hook(module, keep(f"{name}:k"))
        register_value_hook(module, keep(f"{name}:v"))
    for sample_id, ids in samples:
        current = sample_id
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranges_sums_and_counts_are_those_of_what_compressed_tensors_sees(
    llama: Build, samples: list[Sample], dtype: torch.dtype
) -> None:
    stats = collected(llama(dtype), samples)
    expected = hooked(llama(dtype), samples)
    assert sorted(expected) == [name for name in stats.sites if name.endswith((":k", ":v"))] and len(expected) == 4
    for name, by_sample in expected.items():
        site, rows = stats.sites[name], np.concatenate([by_sample[sample] for sample in stats.sample_ids])
        assert site.hessian is None and site.members == (name,) and site.width == 16
        assert np.array_equal(site.sample_min.numpy(), np.stack([by_sample[s].min(0) for s in stats.sample_ids]))
        assert np.array_equal(site.sample_max.numpy(), np.stack([by_sample[s].max(0) for s in stats.sample_ids]))
        assert site.sample_tokens.tolist() == [len(by_sample[sample]) for sample in stats.sample_ids]
        np.testing.assert_allclose(site.sum_sq.numpy(), (rows**2).sum(0), rtol=1e-12)
        assert site.histogram is not None and int(site.histogram.counts.sum()) == rows.size
        ordered = np.sort(np.abs(rows).ravel())
        assert float(quantile(site, 0.99, absolute=True)) == pytest.approx(
            ordered[int(np.ceil(0.99 * len(ordered))) - 1], rel=2.0**-5
        )


def test_nothing_else_changes_and_nothing_is_collected_unasked(llama: Build, samples: list[Sample]) -> None:
    stats = collected(llama(torch.bfloat16), samples)
    plain = collect(llama(torch.bfloat16), samples, StatisticsParams(), base_model_digest="m", fingerprint="t")
    assert set(stats.sites) - set(plain.sites) == {f"model.layers.{n}.self_attn:{x}" for n in (0, 1) for x in "kv"}
    for name, site in plain.sites.items():
        assert site.hessian is not None and torch.equal(site.hessian, stats.sites[name].hessian)
    assert stats.unreached == plain.unreached


def test_tokens_that_do_not_count_are_in_no_range(llama: Build, samples: list[Sample]) -> None:
    counted = {name: torch.arange(len(ids)) % 3 != 0 for name, ids in samples}
    counted[samples[2][0]][:] = True  # a sample of one token
    stats, expected = collected(llama(torch.float32), samples, masks=counted), hooked(llama(torch.float32), samples)
    for name, by_sample in expected.items():
        for row, sample in enumerate(stats.sample_ids):
            rows = by_sample[sample][counted[sample].numpy()]
            assert np.array_equal(stats.sites[name].sample_max[row].numpy(), rows.max(0))


def test_parts_merge_and_retract(llama: Build, samples: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    whole, one, two = (collected(model, part) for part in (samples, samples[:2], samples[2:]))
    for found, expected in ((merge(two, one), whole), (retract(whole, one), two)):
        for name in (name for name in expected.sites if name.endswith((":k", ":v"))):
            a, b = found.sites[name], expected.sites[name]
            assert torch.equal(a.sample_min, b.sample_min) and torch.equal(a.sample_max, b.sample_max)
            assert torch.equal(a.top_values, b.top_values) and torch.equal(a.top_positions, b.top_positions)
            assert a.histogram.first == b.histogram.first and torch.equal(a.histogram.counts, b.histogram.counts)
            assert a.hessian is None and b.hessian is None


def test_they_are_stored_and_starve_nobody(llama: Build, tmp_path: Path) -> None:
    stats = collected(llama(torch.bfloat16), [("a", [1, 2, 3])])
    save(stats, tmp_path, {})
    loaded = load(tmp_path)
    for name in ("model.layers.0.self_attn:k", "model.layers.1.self_attn:v"):
        assert torch.equal(loaded.sites[name].sample_max, stats.sites[name].sample_max)
        assert loaded.sites[name].hessian is None
    starved = starved_sites(read_json(tmp_path / HEADER))
    assert starved and not any(":" in name for name in starved)
