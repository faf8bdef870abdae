"""Scale and zero point of groups of weights: the rules for the range that the codes cover.

`minmax` covers the whole range. `percentile` leaves out a share of the values. `mse` shrinks the range in steps of a
hundredth and takes the one of least squared error, as llm-compressor's mse observer does with the 2.4th power and down
to 0.8. Plumbline takes squares, because the output error of a layer is a sum of squares, and goes further, because few
bits need much smaller ranges: the best 2-bit grid for normally distributed weights ends at half of the largest of 128.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from plumbline.quantized_model.grid import round_to_grid, scale_and_zero
from plumbline.quantized_model.params import RangeRule

SHRINKS = tuple(step / 100 for step in range(100, 19, -1))
"""Shares of the whole range that `mse` tries."""
CHUNK = 1 << 16
"""Values that `mse` rounds at a time, few enough for the cache of a core."""

Ranges = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Computes scale and zero point (...,) of the weights (..., group) that share them."""


def weight_range(
    values: Tensor,
    bits: int,
    symmetric: bool,
    dtype: torch.dtype,
    rule: RangeRule = "minmax",
    percentile: float = 99.9,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of groups of weights.

    Args:
        values: (..., group), float32 or float64: the last dimension shares a scale.
        bits: width of a code.
        symmetric: centre the grid on zero.
        dtype: of the model, in which the scale is stored.
        rule: see the module.
        percentile: of the magnitudes (symmetric), or the share in the middle that is covered (asymmetric). The
            p-quantile of n values is the ceil(p * n)-th smallest, so it acts if more than 1 / (1 - p) share a scale.

    Returns:
        scale (in `dtype`, positive) and zero point (float32 integers, 0 where symmetric), each (...,).
    """
    if rule == "percentile":
        low, high = _inner(values, percentile, symmetric)
    else:
        low, high = values.amin(-1), values.amax(-1)
    if rule == "mse":
        rows = values.reshape(-1, values.shape[-1])
        share = _best_share(rows, low.reshape(-1), high.reshape(-1), bits, symmetric, dtype)
        low, high = low * share.view_as(low), high * share.view_as(high)
    return scale_and_zero(low, high, bits, symmetric, dtype)


def _inner(values: Tensor, percentile: float, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The ends of the range without the outliers, (...,) each."""
    n = values.shape[-1]
    if symmetric:
        high = values.abs().kthvalue(_rank(percentile, n), dim=-1).values
        return -high, high
    rank = _rank((100 + Fraction(repr(percentile))) / 2, n)
    return values.kthvalue(n + 1 - rank, dim=-1).values, values.kthvalue(rank, dim=-1).values


def _rank(percentile: float | Fraction, n: int) -> int:
    """ceil(percentile / 100 * n), at least 1, in exact arithmetic: 7 % of 100 is 7, not 7.000000000000001."""
    exact = percentile if isinstance(percentile, Fraction) else Fraction(repr(percentile))
    return max(1, math.ceil(exact * n / 100))


def _best_share(values: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> Tensor:
    """(groups,): the share in `SHRINKS` of least squared error for each of (groups, group); the largest of equals."""
    best = torch.empty_like(low)
    shares = torch.tensor(SHRINKS, dtype=low.dtype, device=low.device).unsqueeze(1)
    step = max(1, CHUNK // (values.shape[-1] * len(SHRINKS)))
    for start in range(0, len(values), step):
        w, a, b = (x[start : start + step] for x in (values, low, high))
        scale, zero = scale_and_zero(a * shares, b * shares, bits, symmetric, dtype)
        s, z = scale.to(w.dtype).unsqueeze(-1), zero.to(w.dtype).unsqueeze(-1)
        if symmetric:
            q = round_to_grid(w, s, bits)
        else:
            q = round_to_grid(w, s, bits, z).sub_(z)
        errors = q.mul_(s).sub_(w).square_().sum(-1)
        best[start : start + step] = torch.where(errors == errors.amin(0), shares, 0.0).amax(0)
    return best
