"""One site's running totals: what its options mean, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.activation_stats import kernel
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.running import RunningSite
from plumbline.activation_stats.sketch import SiteStats
from plumbline.base_model.inputs import UNKNOWN
from plumbline.histogram import bucket, counted

LENGTHS = (300, 1, 40, 257)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test with kernel.c and without."""
    if request.param == "torch":
        monkeypatch.setattr(kernel, "library", lambda: None)
    elif kernel.library() is None:
        pytest.skip("kernel.c is not compiled, or not for this CPU")


def activations(dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(tokens, 43, generator=generator) + 0.5).to(dtype) for tokens in LENGTHS]


def site_of(parts: list[Tensor], positions: list[Tensor] | None = None, **options: Any) -> SiteStats:
    hessian = options.pop("expected_hessian", None)
    site = RunningSite("s", 43, parts[0].dtype, torch.device("cpu"), StatisticsParams(**options), len(parts), hessian)
    for row, x in enumerate(parts):
        site.add(x, row, f"sample {row}", None if positions is None else positions[row])
    return site.result(("s",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_sample_weighs_the_same_where_the_hessian_is_normalised_by_sequence(dtype: torch.dtype) -> None:
    parts = activations(dtype)
    X = [x.double().numpy() for x in parts]
    for normalization, S in (
        ("token", sum(x.T @ x for x in X)),
        ("sequence", sum(x.T @ x / len(x) for x in X)),
    ):
        found = site_of(parts, normalization=normalization).hessian
        assert found is not None and isinstance(S, np.ndarray)
        assert np.abs(found.numpy() - S).max() <= 2e-6 * np.diag(S).max()
    assert torch.equal(site_of(parts, normalization="sequence").sum_sq, site_of(parts).sum_sq)


def test_a_histogram_of_a_share_reads_the_tokens_that_the_hash_picks_and_nothing_else_changes() -> None:
    parts = activations()
    whole, share = site_of(parts), site_of(parts, histogram_share=0.25)
    picked = [counted(f"sample {row}", torch.arange(len(x)), 0.25) for row, x in enumerate(parts)]
    assert all(which is not None for which in picked)
    read = torch.cat([x[which] for x, which in zip(parts, picked, strict=True)])
    assert 100 <= len(read) <= 200  # of 598
    numbers = bucket(read, 4) - share.histogram.first
    for channel in range(43):
        expected = torch.bincount(numbers[:, channel].int(), minlength=share.histogram.counts.shape[1])
        assert torch.equal(share.histogram.counts[channel], expected)
    assert share.histogram.counts.dtype == torch.int64
    assert torch.equal(whole.sum, share.sum) and torch.equal(whole.sample_max, share.sample_max)
    assert whole.tokens == share.tokens == sum(LENGTHS)


def test_which_tokens_are_counted_is_settled_by_sample_and_position() -> None:
    """Stable across versions: statistics of different days merge. The share is met, and samples differ."""
    positions = torch.arange(20000)
    first, second = counted("a", positions, 0.1), counted("b", positions, 0.1)
    assert first is not None and second is not None
    assert first.nonzero().flatten()[:5].tolist() == [22, 32, 33, 34, 42]
    assert abs(int(first.sum()) - 2000) <= 4 * 42.4 and abs(int((first & second).sum()) - 200) <= 4 * 14.1  # 4 sigma
    subset = positions[torch.randperm(20000, generator=torch.Generator().manual_seed(0))[:500]]
    again = counted("a", subset, 0.1)
    assert again is not None and torch.equal(again, first[subset])
    assert counted("a", positions, 1.0) is None


def test_rows_that_are_some_of_a_samples_tokens_keep_their_positions() -> None:
    parts = activations()
    generator = torch.Generator().manual_seed(1)
    positions = [torch.randperm(1000, generator=generator)[: len(x)].sort().values for x in parts]
    site = site_of(parts, positions, top_k=3, histogram_share=0.5)
    for row, (x, place) in enumerate(zip(parts, positions, strict=True)):
        ranked = sorted(
            (-abs(float(value)), int(place[token]), channel) for (token, channel), value in np.ndenumerate(x.float())
        )[:3]
        assert site.top_positions[row].tolist() == [position for _, position, _ in ranked]
        assert site.top_channels[row].tolist() == [channel for *_, channel in ranked]
    read = sum(
        int(which.sum()) for row, p in enumerate(positions) if (which := counted(f"sample {row}", p, 0.5)) is not None
    )
    assert site.histogram.counts.sum(dim=1).tolist() == [read] * 43


def test_rows_of_unknown_positions_are_counted_by_their_number() -> None:
    parts = activations()
    unknown = [torch.full((len(x),), UNKNOWN) for x in parts]
    a, b = site_of(parts, unknown, histogram_share=0.3), site_of(parts, histogram_share=0.3)
    assert torch.equal(a.histogram.counts, b.histogram.counts)
    assert bool((a.top_positions == UNKNOWN).all())


def test_a_layer_that_runs_twice_for_a_sample_continues_its_positions() -> None:
    site = RunningSite("s", 1, torch.bfloat16, torch.device("cpu"), StatisticsParams(top_k=4), 1)
    site.add(torch.tensor([[1.0], [5.0]]).bfloat16(), 0, "a")
    site.add(torch.tensor([[-7.0], [5.0]]).bfloat16(), 0, "a")
    found = site.result(("s",))
    assert found.top_values.tolist() == [[-7, 5, 5, 1]] and found.top_positions.tolist() == [[2, 1, 3, 0]]
    assert found.sample_tokens.tolist() == [4]


def test_whether_there_is_a_hessian_can_be_said_per_site() -> None:
    parts = activations()
    assert site_of(parts, expected_hessian=False).hessian is None
    assert site_of(parts, hessian=False).hessian is None
    assert site_of(parts, hessian=False, expected_hessian=True).hessian is not None


def test_no_rows_change_nothing() -> None:
    parts = activations()
    nothing = torch.zeros(0, 43, dtype=torch.bfloat16)
    with_empty, without = site_of([*parts, nothing]), site_of(parts)
    assert with_empty.samples == without.samples == 4
    assert torch.equal(with_empty.min, without.min) and torch.equal(with_empty.sum, without.sum)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_refused_with_site_channel_and_sample(value: float) -> None:
    parts = activations()
    parts[2][39, 17] = value
    with pytest.raises(
        ValueError, match="site 's', channel 17: the base model computes inf or NaN for sample sample 2"
    ):
        site_of(parts)


def test_another_dtype_or_width_is_refused() -> None:
    site = RunningSite("s", 43, torch.bfloat16, torch.device("cpu"), StatisticsParams(), 1)
    with pytest.raises(ValueError, match="torch.float32 43 wide for sample a, torch.bfloat16 43 wide before"):
        site.add(torch.zeros(1, 43), 0, "a")
    with pytest.raises(ValueError, match="torch.bfloat16 42 wide for sample a"):
        site.add(torch.zeros(1, 42).bfloat16(), 0, "a")
    site.add(torch.zeros(1, 43).bfloat16(), 0, "a")
    site.sets[0].tokens[0] = 2**31 - 2
    with pytest.raises(ValueError, match="more than 2147483647 tokens in one shard, .*raise statistics.shards"):
        site.add(torch.zeros(2, 43).bfloat16(), 0, "a")


def test_rows_that_do_not_lie_one_after_the_other_in_memory() -> None:
    parts = activations()
    strided = [torch.stack([x, -x], dim=1)[:, 0] for x in parts]
    assert not strided[0].is_contiguous()
    a, b = site_of(parts), site_of(strided)
    assert a.hessian is not None and b.hessian is not None
    assert torch.equal(a.hessian, b.hessian) and torch.equal(a.sum, b.sum)
    assert torch.equal(a.histogram.counts, b.histogram.counts) and torch.equal(a.top_positions, b.top_positions)
