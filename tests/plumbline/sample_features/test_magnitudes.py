"""Bucket counts against numpy on the activations themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.histogram import midpoints, n_buckets
from plumbline.sample_features.measure import Counter
from plumbline.sample_features.probe import Probe
from plumbline.sample_features.signature_reader import bucket_edges, magnitudes
from plumbline.sample_features.signatures import MANTISSA_BITS, Magnitudes, SignatureSite


def counted(x: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, Magnitudes]:
    """|x| (tokens, width) as float64 after rounding to `dtype`, and its magnitudes through the code under test."""
    rounded = torch.from_numpy(x).to(dtype)
    width = x.shape[1]
    empty = np.zeros((width, 0), np.float32)
    zeros = np.zeros(width, np.float32)
    probe = Probe((SignatureSite("a", width, 0),), "bfloat16", zeros, zeros, empty, np.zeros((1, 0, 0)), empty, empty)
    counter = Counter(probe, torch.device("cpu"))
    half = len(x) // 2
    counter.add(probe.sites[0], rounded[:half])
    counter.add(probe.sites[0], rounded[half:])
    counts = counter.result()
    occupied = np.flatnonzero(counts.any(axis=0))
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    magnitude = np.abs(rounded.double().numpy())
    return magnitude, magnitudes(counts[:, first:last], first, magnitude.max(axis=0).astype(np.float32))


def wide(seed: int, tokens: int = 3000, width: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, (tokens, width)) * 10.0 ** rng.integers(-3, 3, width)
    x[rng.random(x.shape) < 0.01] = 0.0
    x[0, 0], x[1, 0], x[2, 1] = 2.0**-21, 2.0**20, -3e6
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_counts_are_those_of_numpy(dtype: torch.dtype) -> None:
    x, found = counted(wide(0).clip(-6e4, 6e4), dtype)
    assert found.edges[0] == 0 and found.edges[-1] == np.inf
    assert (np.diff(found.edges) > 0).all()
    for channel in range(x.shape[1]):
        expected, _ = np.histogram(x[:, channel], bins=np.append(found.edges[:-1], 1e300))
        assert np.array_equal(found.counts[channel], expected)


def test_edges_are_those_of_the_histogram_of_activation_statistics() -> None:
    edges = bucket_edges()
    assert len(edges) - 1 == (n_buckets(MANTISSA_BITS) + 1) // 2
    middle = midpoints(MANTISSA_BITS, "float32").numpy()[-(len(edges) - 1) :]
    assert np.array_equal(middle[1:-1], (edges[1:-2] + edges[2:-1]) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_share_above_is_exact_at_edges_and_within_a_bucket_elsewhere(dtype: torch.dtype) -> None:
    x, found = counted(wide(1), dtype)
    for edge in found.edges[:-1:7]:
        share = found.share_above(np.full(x.shape[1], edge, np.float32))
        bounded = x.max(axis=0) > edge  # the last bucket ends at the largest value
        assert np.array_equal(share[bounded], (x >= edge).mean(axis=0)[bounded])
        assert (share[~bounded] == 0).all()
    rng = np.random.default_rng(2)
    for limit in 10.0 ** rng.uniform(-7, 7, 40):
        limits = np.full(x.shape[1], limit, np.float32)
        share = found.share_above(limits)
        bucket = np.searchsorted(found.edges, float(limits[0]), side="right") - 1
        assert (share >= (x >= found.edges[bucket + 1]).mean(axis=0) - 1e-12).all()
        assert (share <= (x >= found.edges[bucket]).mean(axis=0) + 1e-12).all()


def test_nothing_is_above_the_largest_value() -> None:
    """A channel with an upper bound that a third of its tokens reach: a bucket's width must not count."""
    x, found = counted(np.repeat([[2.171875], [2.140625], [0.3]], 100, axis=0), torch.bfloat16)
    assert found.share_above(x.max(axis=0).astype(np.float32)).tolist() == [0.0]
    assert found.share_above(np.array([2.1875], np.float32)).tolist() == [0.0]
    without = Magnitudes(found.edges, found.counts)
    assert without.share_above(np.array([2.1875], np.float32)) > 0.1
    assert found.quantile(1.0).tolist() == [2.171875]


def test_a_bucket_without_an_end_counts_as_above() -> None:
    found = Magnitudes(np.array([0.0, 1.0, np.inf]), np.array([[3, 1]]))
    assert found.share_above(np.array([5.0], np.float32)).tolist() == [0.25]
    assert found.share_above(np.array([0.5], np.float32)).tolist() == [(1.5 + 1) / 4]
    assert found.quantile(1.0).tolist() == [1.0]
    assert found.quantile(0.375).tolist() == [0.5]


@pytest.mark.parametrize("q", [0.0, 0.001, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles_lie_in_the_bucket_of_the_exact_one(q: float) -> None:
    x, found = counted(wide(3), torch.bfloat16)
    exact = np.quantile(x, q, axis=0, method="inverted_cdf")
    bucket = np.searchsorted(found.edges, exact, side="right") - 1
    value = found.quantile(q)
    assert (found.edges[bucket] <= value).all()
    assert (value <= found.edges[bucket + 1]).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_quantile_and_share_above_are_inverse(seed: int, q: float) -> None:
    """Up to the rounding of the value to float32, which is a 2^-18 of a bucket."""
    _, found = counted(np.random.default_rng(seed).lognormal(0, 2, (200, 3)), torch.float32)
    whole = Magnitudes(found.edges, found.counts)
    share = whole.share_above(whole.quantile(q).astype(np.float32))
    assert np.abs(share - (1 - q)).max() < 2**-18


@pytest.mark.parametrize("q", [-0.1, 1.1])
def test_quantile_refuses_what_is_none(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Magnitudes(np.array([0.0, np.inf]), np.array([[1]])).quantile(q)


@pytest.mark.parametrize("limit", [[1.0, 2.0], [-1.0], [np.nan]])
def test_share_above_refuses_what_is_no_limit(limit: list[float]) -> None:
    with pytest.raises(ValueError, match="one per channel"):
        Magnitudes(np.array([0.0, np.inf]), np.array([[1]])).share_above(np.array(limit, np.float32))
