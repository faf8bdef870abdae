"""Scale and zero point of groups of weights: the rules for the range that the codes cover.

`minmax` covers the whole range. `percentile` leaves out a share of the values. `mse` shrinks the range in steps of a
hundredth and takes the one of least squared error, as llm-compressor's mse observer does with the 2.4th power and down
to 0.8. Plumbline takes squares, because the output error of a layer is a sum of squares, and goes further, because few
bits need much smaller ranges: the best 2-bit grid for normally distributed weights ends at half of the largest of 128.

`hessian` weighs the squared error of channel j by D_jj, where H = L^T D L is the factor that GPTQ walks through. GPTQ
is Babai's nearest plane algorithm on the lattice of H (Chen et al., arXiv 2507.18553), and its output error is the sum
of D_jj r_j^2 with r_j the rounding error of column j against its target. D_jj is what is left of the channel's second
moment once the channels that are solved later have compensated for it. H_jj itself, E[x^2], overrates a channel that
others can compensate. Relative output error of SmolLM2-135M with activation order, groups of 64, against minmax: 3 bits
mse 0.80, weighted by H_jj 0.82, by the group's block of H 0.84, by D_jj 0.77; 4 bits 0.90, 0.97, 0.97, 0.88. The KL
divergence gains more, because `mse` clips weights of the few channels that carry massive activations: at 3 bits minmax
0.868, mse 0.726, hessian 0.510, and 0.471 with signed scales (mse 0.708); at 4 bits 0.262 and 0.138 with both. The
range may also grow, because a symmetric grid clips the positive end by half a step.

`imatrix` weighs it by H_jj: for rounding to nearest, which compensates for nothing.

A signed scale uses the code that a symmetric grid has on one side only: where the weights reach further to the positive
side, the scale is negative, and the code -2^(bits-1) stands for the largest weight, as in the symmetric grids of
AutoRound and GGUF. Any kernel that multiplies code and scale computes it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from plumbline.quantized_model.format_params import WeightRangeRule
from plumbline.quantized_model.grid import Grid, scale_and_zero
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.range_search import least_error

SHRINKS = tuple(step / 100 for step in range(100, 19, -1))
"""Shares of the whole range that `mse` tries."""
SHARES = tuple(step / 100 for step in range(121, 20, -3))
"""Shares of the whole range that `hessian` tries; finer steps lower the error by 0.2 %."""
FLOAT_SHARES = tuple(step / 100 for step in (100, *range(180, 100, -4), *range(96, 59, -4)))
"""Those for floating-point numbers. Above 1 the largest weight gets a smaller number, 4 instead of 6, say, which leaves
finer steps below it (Cook et al., Four Over Six, arXiv 2512.02010)."""
OCTAVES = (1.0, 2.0, 0.5)
"""Those for scales that are powers of two."""


class Ranges(Protocol):
    """Computes scale and zero point (...,) of the weights (..., group) that share them."""

    def __call__(self, values: Tensor, *, importance: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


def ranges_of(grid: Grid, scheme: SchemeParams, dtype: torch.dtype, global_scale: Tensor | None = None) -> Ranges:
    """The function that computes scale and zero point of a group in a solver.

    Args:
        global_scale: of the weight, where the grid has one.
    """
    return partial(
        weight_range,
        grid=grid,
        dtype=dtype,
        rule=scheme.range,
        percentile=scheme.percentile,
        signed=scheme.signed_scale,
        global_scale=global_scale,
    )


def weight_range(
    values: Tensor,
    grid: Grid,
    dtype: torch.dtype,
    rule: WeightRangeRule = "minmax",
    percentile: float = 99.9,
    signed: bool = False,
    *,
    importance: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of groups of weights.

    Args:
        values: (..., group), float32 or float64: the last dimension shares a scale.
        grid: numbers, symmetry, format of the scale.
        dtype: of the model.
        rule: see the module.
        percentile: of the magnitudes (symmetric), or the share in the middle that is covered (asymmetric). The
            p-quantile of n values is the ceil(p * n)-th smallest, so it acts if more than 1 / (1 - p) share a scale.
        signed: the scale may be negative, see the module; symmetric integers only. `minmax` and `percentile` then put
            the code -2^(bits-1) on the end that lies further from zero; the other rules try both.
        importance: not negative, of the shape of `values` or of its last dimensions: what a squared error counts in
            `hessian` and `imatrix`. None, or all zero in a group: every value counts the same.
        global_scale: float32 (1,), where the grid has one.

    Returns:
        scale (in `scale_dtype`, positive unless signed) and zero point (float32 integers, 0 where symmetric), each
        (...,).
    """
    signed = signed and grid.symmetric
    if rule == "percentile":
        low, high = _inner(values, percentile, grid.symmetric)
    else:
        low, high = values.amin(-1), values.amax(-1)
    if rule in ("minmax", "percentile"):
        if signed:
            return _one_sided(low, high, grid, dtype)
        return scale_and_zero(low, high, grid, dtype, global_scale)
    shape, size = low.shape, values.shape[-1]
    weights = None
    if rule in ("hessian", "imatrix") and importance is not None:
        weights = importance.to(values.dtype).reshape(-1, size)
        weights = torch.where((weights > 0).any(-1, keepdim=True), weights, 1.0)
    flat = values.reshape(-1, size), low.reshape(-1), high.reshape(-1)
    scale, zero = least_error(*flat, weights, shares_of(grid, rule), grid, signed, dtype, global_scale)
    return scale.view(shape), zero.view(shape)


def shares_of(grid: Grid, rule: WeightRangeRule) -> tuple[float, ...]:
    """The shares of the whole range that a search tries, the first of equal errors wins."""
    if grid.scale_format == "e8m0":
        return OCTAVES
    if grid.type == "float":
        return FLOAT_SHARES
    return SHRINKS if rule == "mse" else SHARES


def _one_sided(low: Tensor, high: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The smallest signed scale whose grid covers the end that lies further from zero; the negative one of equals."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (torch.where(high > -low, high, low) / grid.numbers.first).to(dtype)
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
    return scale, torch.zeros_like(scale, dtype=torch.float32)


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
