"""Ranges of weights against brute force in NumPy's float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.numbers import code_range
from plumbline.quantized_model.ranges import SHRINKS, weight_range
from plumbline.quantized_model.rtn import rtn

Array = NDArray[np.float64]
DTYPES = [torch.float32, torch.bfloat16]


def values_of(seed: int, groups: int, size: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    heavy = torch.randn(groups, size, generator=g) ** 3  # tails worth cutting off
    return heavy + 0.3 * torch.randn(groups, 1, generator=g)


def numpy_grid(low: float, high: float, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[float, float]:
    """compressed-tensors' rule, one group at a time in float64; only the scale is rounded as it is stored."""
    first, last = code_range(bits)
    low, high = min(low, 0.0), max(high, 0.0)
    exact = 2 * max(-low, high) / (last - first) if symmetric else (high - low) / (last - first)
    scale = float(torch.tensor(exact, dtype=torch.float64).to(dtype)) or float(torch.finfo(dtype).eps)
    zero = 0.0 if symmetric else float(np.clip(np.round(first - low / scale), first, last))
    return scale, zero


def numpy_error(w: Array, scale: float, zero: float, bits: int) -> float:
    codes = np.clip(np.round(w / scale + zero), *code_range(bits))
    return float((((codes - zero) * scale - w) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    size=st.sampled_from([3, 16, 43, 128]),
    dtype=st.sampled_from(DTYPES),
)
def test_mse_is_the_best_of_all_shares_by_brute_force(seed, bits, symmetric, size, dtype) -> None:
    w = values_of(seed, 4, size).double()
    scale, zero = weight_range(w, Grid(bits, symmetric=symmetric), dtype, "mse")
    for row, values in enumerate(w.numpy()):
        errors = [
            numpy_error(values, *numpy_grid(values.min() * p, values.max() * p, bits, symmetric, dtype), bits)
            for p in SHRINKS
        ]
        found = numpy_error(values, float(scale[row]), float(zero[row]), bits)
        assert found == pytest.approx(min(errors), rel=1e-9, abs=1e-30)


def test_mse_cuts_an_outlier_off_where_that_pays_and_nothing_where_it_does_not() -> None:
    normal = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    flat = torch.linspace(-1, 1, 4096)[None]
    for values, shrinks in ((normal, True), (flat, False)):
        whole, _ = weight_range(values, Grid(3), torch.float32)
        best, _ = weight_range(values, Grid(3), torch.float32, "mse")
        assert (float(best / whole) < 0.75) == shrinks


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([3, 100, 128, 1000]),
    percentile=st.sampled_from([51.0, 90.0, 93.0, 99.0, 99.9, 100.0]),
    symmetric=st.booleans(),
)
def test_percentiles_are_ranks(seed, size, percentile, symmetric) -> None:
    w = values_of(seed, 3, size)
    scale, zero = weight_range(w, Grid(4, symmetric=symmetric), torch.float32, "percentile", percentile)
    for row, values in enumerate(w.double().numpy()):
        inner = Fraction(str(percentile)) if symmetric else (100 + Fraction(str(percentile))) / 2
        ends = (np.abs(values), np.abs(values)) if symmetric else (-values, values)
        low, high = (np.sort(side)[math.ceil(inner * size / 100) - 1] for side in ends)
        low = -low
        expected = numpy_grid(float(low), float(high), 4, symmetric, torch.float32)
        assert (float(scale[row]), float(zero[row])) == pytest.approx(expected, rel=1e-6)


def test_ranks_are_exact() -> None:
    """99.9 % of 1000 would be 999.0000000000001, hence the 1000th, in floating point: ranks are exact."""
    w = torch.arange(1.0, 1001.0)[None]
    for percentile in (57.0, 99.0, 99.9):
        scale, _ = weight_range(w, Grid(8), torch.float32, "percentile", percentile)
        assert float(scale) == pytest.approx(10 * percentile / 127.5, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4, 8]), size=st.sampled_from([4, 20, None]))
def test_rounding_with_zero_points_is_that_of_numpy(seed, bits, size) -> None:
    w = values_of(seed, 5, 40)
    quantized = rtn(w, Grid(bits, size, symmetric=False))
    assert quantized.zero_point is not None
    found = dequantize(quantized).double().numpy().reshape(5, -1, size or 40)
    for row, group in np.ndindex(found.shape[:2]):
        values = w.double().numpy().reshape(found.shape)[row, group]
        scale, zero = numpy_grid(values.min(), values.max(), bits, False, torch.float32)
        codes = np.clip(np.round(values / scale + zero), *code_range(bits))
        # a value half way between two codes may go either way in float32
        assert np.abs(found[row, group] - (codes - zero) * scale).max() <= scale * 1.01
        assert np.isclose(found[row, group], (codes - zero) * scale, rtol=1e-5, atol=1e-7).mean() > 0.9


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_scale_for_the_whole_weight(symmetric: bool) -> None:
    w = values_of(0, 6, 40)
    one = rtn(w, Grid(4, None, symmetric, per_tensor=True))
    assert one.scale.shape == (1, 1)
    flat = rtn(w.reshape(1, -1), Grid(4, None, symmetric))
    assert torch.equal(one.codes.flatten(), flat.codes.flatten())
    assert torch.equal(dequantize(one).flatten(), dequantize(flat).flatten())


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_single_signs_stay_finite(rule, symmetric) -> None:
    w = torch.stack([torch.zeros(64), torch.rand(64) + 1, -torch.rand(64) - 1])
    scale, zero = weight_range(w, Grid(4, symmetric=symmetric), torch.bfloat16, rule)
    assert torch.isfinite(scale).all() and (scale > 0).all()
    assert torch.isfinite(zero).all()
