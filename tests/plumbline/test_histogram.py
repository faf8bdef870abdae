"""The histogram of bit patterns against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.histogram import Histogram, add, bucket, midpoints, n_buckets, quantile, trimmed


def histogram(x: torch.Tensor, mantissa_bits: int) -> Histogram:
    """Of (tokens, channels), counted one by one."""
    counts = torch.zeros(x.shape[1], n_buckets(mantissa_bits), dtype=torch.int64)
    for row in bucket(x, mantissa_bits).tolist():
        for channel, number in enumerate(row):
            counts[channel, number] += 1
    return trimmed(counts, 0, mantissa_bits, str(x.dtype).removeprefix("torch."))


def every_bfloat16() -> torch.Tensor:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return x[torch.isfinite(x)]


@pytest.mark.parametrize("m", range(8))
def test_a_bucket_is_sign_exponent_and_leading_mantissa_bits(m: int) -> None:
    x = every_bfloat16()
    expected = []
    for value in x.double().tolist():
        window = 40 * 2**m
        if abs(value) < 2.0**-20:
            number = 0
        elif abs(value) >= 2.0**20:
            number = window + 1
        else:
            fraction, exponent = math.frexp(abs(value))  # abs(value) = fraction * 2^exponent, fraction in [1/2, 1)
            number = 1 + (exponent - 1 + 20) * 2**m + math.floor((2 * fraction - 1) * 2**m)
        expected.append(window + 1 + int(math.copysign(number, value)) if number else window + 1)
    assert bucket(x, m).tolist() == expected
    assert max(expected) == n_buckets(m) - 1 and min(expected) == 0


@pytest.mark.parametrize("m", [0, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_wider_type_falls_into_the_bucket_of_its_leading_bits(m: int, dtype: torch.dtype) -> None:
    x = (torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    inner = x[x.abs() >= 2.0**-20].double()
    distance = (midpoints(m, "float32")[bucket(inner.to(dtype), m).long()] / inner - 1).abs()
    assert distance.max() <= 2.0 ** -(m + 1)
    assert distance.max() > 2.0 ** -(m + 1) / 2  # the bound is sharp, so these are not finer buckets than promised


def test_seven_bits_keep_every_bfloat16_of_the_window() -> None:
    x = every_bfloat16()
    x = x[(x.abs() >= 2.0**-20) & (x.abs() < 2.0**20)]
    assert torch.equal(midpoints(7, "bfloat16")[bucket(x, 7).long()], x.double())


values = st.floats(-(2.0**21), 2.0**21, width=32).map(lambda x: float(torch.tensor(x).bfloat16()))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(values, min_size=2, max_size=2), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(0, 7),
    st.booleans(),
)
def test_a_quantile_is_the_order_statistic_within_half_a_bucket(
    rows: list[list[float]], q: float, m: int, absolute: bool
) -> None:
    x = torch.tensor(rows, dtype=torch.bfloat16)
    h = histogram(x, m)
    seen = x.double().abs().numpy() if absolute else x.double().numpy()
    for found, exact in (
        (quantile(h, q, per_channel=True, absolute=absolute).numpy(), np.sort(seen, axis=0)),
        (quantile(h, q, absolute=absolute).numpy()[None], np.sort(seen.ravel())[:, None]),
    ):
        rank = max(1, math.ceil(q * len(exact) - 1e-12))
        for value, true in zip(found, exact[rank - 1], strict=True):
            if abs(true) >= 2.0**20:
                assert value == math.copysign(math.inf, true)
            elif abs(true) < 2.0**-20:
                assert value == 0
            else:
                assert abs(value / true - 1) <= 2.0 ** -(m + 1)


def test_the_rank_is_computed_in_decimals() -> None:
    h = histogram(torch.arange(1, 101, dtype=torch.bfloat16)[:, None], 7)
    assert quantile(h, 0.07) == 7  # 0.07 * 100 is 7.000000000000001 in floating point
    assert quantile(h, 0.071) == 8
    assert quantile(h, 0) == 1
    assert quantile(h, 1) == 100


def test_adding_and_taking_away_are_exact_and_keep_one_form() -> None:
    x, y = torch.tensor([[1.0, -8.0], [0.0, 3.0]]), torch.tensor([[1e9, 1e-9], [-4.0, 3.0]])
    whole = histogram(torch.cat([x, y]), 3)
    total = add(histogram(x, 3), histogram(y, 3))
    assert total.first == whole.first and torch.equal(total.counts, whole.counts)
    rest = add(total, histogram(y, 3), sign=-1)
    assert rest.first == histogram(x, 3).first and torch.equal(rest.counts, histogram(x, 3).counts)
    assert add(rest, rest, sign=-1).counts.shape == (2, 0)


def test_refusals() -> None:
    x = torch.tensor([[1.0]])
    with pytest.raises(ValueError, match="less than nothing"):
        add(histogram(x, 3), histogram(2 * x, 3), sign=-1)
    with pytest.raises(ValueError, match=r"different \(mantissa bits, dtype, channels\): \(3, 'float32', 1\) and \(4"):
        add(histogram(x, 3), histogram(x, 4))
    with pytest.raises(ValueError, match=r"between 0 and 1, found 99\.9"):
        quantile(histogram(x, 3), 99.9)
    with pytest.raises(ValueError, match="no token reached"):
        quantile(histogram(x[:0], 3), 0.5)
