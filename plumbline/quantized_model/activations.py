"""How the input of a quantized Linear is rounded: static, from the stored statistics of a site, or token by token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline.activation_stats.sketch import SiteStats, quantile
from plumbline.histogram import Histogram
from plumbline.quantized_model.grid import round_to_grid, scale_and_zero, symmetric_scale
from plumbline.quantized_model.params import ActivationParams
from plumbline.quantized_model.ranges import SHRINKS

if TYPE_CHECKING:
    from plumbline.quantized_model.quantize import Site


def activation_range(site: Site, params: ActivationParams) -> tuple[float, float]:
    """The range that a static activation scale is to cover, from what the statistics hold of a site.

    Percentiles and errors come from the histogram: `percentile` is off by at most 2^-(m+1) relative (m mantissa bits),
    `mse` takes the values of a bucket to be spread evenly over the bfloat16 numbers in it.

    Returns:
        (low, high), low <= 0 <= high.

    Raises:
        ValueError: the range is not finite, or the statistics hold no histogram, which the rule reads.
    """
    low, high = float(site.min.min()), float(site.max.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the activations range from {low} to {high}; a static scale needs a finite range")
    low, high = min(0.0, low), max(0.0, high)
    if params.range == "minmax":
        return low, high
    found = site.histogram
    if found is None or not bool(found.counts.any()):
        raise ValueError(
            "the statistics hold no histogram, which activations.range percentile and mse read: use range: minmax"
        )
    if params.range == "percentile":
        stats = cast("SiteStats", site)
        if params.symmetric:
            absmax = float(quantile(stats, params.percentile / 100, absolute=True))
            return max(low, -absmax), min(high, absmax)
        inner = (quantile(stats, (100 + sign * params.percentile) / 200) for sign in (-1, 1))
        inner_low, inner_high = (float(x) for x in inner)
        return min(0.0, inner_low), max(0.0, inner_high)
    values, counts = _spread(found)
    values, dtype = values.clamp(low, high), getattr(torch, found.dtype)
    shares = torch.tensor(SHRINKS, dtype=torch.float64)
    scale, zero = scale_and_zero(low * shares, high * shares, params.bits, params.symmetric, dtype)
    scale, zero = scale.double().unsqueeze(-1), zero.double().unsqueeze(-1)
    errors = ((round_to_grid(values, scale, params.bits, zero) - zero) * scale - values).square() @ counts
    best = SHRINKS[int(errors.argmin())]
    return low * best, high * best


def activation_scale(low: float, high: float, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Static scale and zero point that cover [low, high] and zero; q, k and v share a site, hence both.

    Args:
        low, high: the range, see `activation_range`.
        bits: width of a code.
        symmetric: centre the grid on zero.
        dtype: of the model.

    Returns:
        scale (1,) in `dtype`, zero point (1,) int8, 0 where symmetric.
    """
    ends = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    scale, zero = scale_and_zero(*ends, bits, symmetric, dtype)
    return scale, zero.to(torch.int8)


def quantize_activation(x: Tensor, scale: Tensor, bits: int, zero_point: Tensor | None = None) -> Tensor:
    """Round activations to the static grid and back, all in x's dtype: what runs in front of a W8A8 Linear."""
    if zero_point is None:
        return round_to_grid(x, scale, bits) * scale
    zero = zero_point.to(x.dtype)
    return (round_to_grid(x, scale, bits, zero) - zero) * scale


def quantize_per_token(x: Tensor, bits: int) -> Tensor:
    """Round every token of x to a symmetric grid of its own and back, all in x's dtype.

    A token is what the first two dimensions tell apart, as in compressed-tensors: of x (batch, tokens, width) each
    vector; x (rows, width), which a router makes, has one scale.
    """
    magnitude = x.abs()
    absmax = magnitude.amax(tuple(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else magnitude.amax()
    return quantize_activation(x, symmetric_scale(absmax, bits, x.dtype), bits)


def _spread(found: Histogram) -> tuple[Tensor, Tensor]:
    """A site's values over all channels and how many there are of each: both (n,) float64, values rising."""
    whole = torch.zeros(histograms.n_buckets(found.mantissa_bits), dtype=torch.float64)
    whole[found.first : found.first + found.counts.shape[1]] = found.counts.sum(0).double()
    # Each bucket holds 2^(7 - m) bfloat16 numbers; the middle one and the open ends stay whole.
    parts = 1 << (7 - found.mantissa_bits)
    w = histograms.OCTAVES << found.mantissa_bits
    fine = (
        whole[:1],
        whole[1 : w + 1].repeat_interleave(parts) / parts,
        whole[w + 1 : w + 2],
        whole[w + 2 : 2 * w + 2].repeat_interleave(parts) / parts,
        whole[2 * w + 2 :],
    )
    counts, values = torch.cat(fine), histograms.midpoints(7, found.dtype)
    return values[counts > 0], counts[counts > 0]
