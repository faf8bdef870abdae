"""Rounding of a quantized Linear's input, with a static scale from the site's statistics or a scale per token."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline.activation_stats.sketch import SiteStats, quantile
from plumbline.histogram import Histogram
from plumbline.quantized_model.grid import round_to_grid, scale_and_zero, symmetric_scale
from plumbline.quantized_model.input_statistics import InputStatistics
from plumbline.quantized_model.params import ActivationParams
from plumbline.quantized_model.ranges import SHRINKS


def activation_range(site: InputStatistics, params: ActivationParams) -> tuple[float, float]:
    """The range that a static activation scale covers, from the statistics of a site.

    `percentile` and `mse` read the histogram. A percentile is off by at most 2^-(m+1) relative (m mantissa bits); `mse`
    assumes that the values of a bucket are spread evenly over its bfloat16 numbers.

    Returns:
        (low, high), low <= 0 <= high.

    Raises:
        ValueError: the range is not finite, or the statistics lack the histogram that the rule reads.
    """
    low, high = float(site.min.min()), float(site.max.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the activations range from {low} to {high}; a static scale needs a finite range")
    low, high = min(0.0, low), max(0.0, high)
    if params.range == "minmax":
        return low, high
    histogram = site.histogram
    if histogram is None or not bool(histogram.counts.any()):
        raise ValueError(
            "the statistics hold no histogram, which activations.range percentile and mse need: use range: minmax"
        )
    if params.range == "percentile":
        stats = cast("SiteStats", site)
        if params.symmetric:
            absmax = float(quantile(stats, params.percentile / 100, absolute=True))
            return max(low, -absmax), min(high, absmax)
        inner = (quantile(stats, (100 + sign * params.percentile) / 200) for sign in (-1, 1))
        inner_low, inner_high = (float(x) for x in inner)
        return min(0.0, inner_low), max(0.0, inner_high)
    values, counts = _spread(histogram)
    values, dtype = values.clamp(low, high), getattr(torch, histogram.dtype)
    shares = torch.tensor(SHRINKS, dtype=torch.float64)
    scale, zero = scale_and_zero(low * shares, high * shares, params.bits, params.symmetric, dtype)
    scale, zero = scale.double().unsqueeze(-1), zero.double().unsqueeze(-1)
    errors = ((round_to_grid(values, scale, params.bits, zero) - zero) * scale - values).square() @ counts
    best = SHRINKS[int(errors.argmin())]
    return low * best, high * best


def activation_scale(low: float, high: float, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Static scale and zero point of a grid that covers [low, high] and zero; Linears of one site share them.

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
    """Round activations to the static grid and back, all in x's dtype, as in front of a W8A8 Linear."""
    if zero_point is None:
        return round_to_grid(x, scale, bits) * scale
    zero = zero_point.to(x.dtype)
    return (round_to_grid(x, scale, bits, zero) - zero) * scale


def quantize_per_token(x: Tensor, bits: int) -> Tensor:
    """Round every token of x to a symmetric grid of its own and back, all in x's dtype.

    The first two dimensions index the tokens, as in compressed-tensors: x (batch, tokens, width) has a scale per
    vector, x (rows, width), as behind a router, a single scale.
    """
    magnitude = x.abs()
    absmax = magnitude.amax(tuple(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else magnitude.amax()
    return quantize_activation(x, symmetric_scale(absmax, bits, x.dtype), bits)


def _spread(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """The values of a site over all channels, ascending, and their counts: both (n,) float64."""
    whole = torch.zeros(histograms.n_buckets(histogram.mantissa_bits), dtype=torch.float64)
    whole[histogram.first : histogram.first + histogram.counts.shape[1]] = histogram.counts.sum(0).double()
    # Each bucket holds 2^(7 - m) bfloat16 numbers; the middle one and the open ends stay whole.
    parts = 1 << (7 - histogram.mantissa_bits)
    w = histograms.OCTAVES << histogram.mantissa_bits
    fine = (
        whole[:1],
        whole[1 : w + 1].repeat_interleave(parts) / parts,
        whole[w + 1 : w + 2],
        whole[w + 2 : 2 * w + 2].repeat_interleave(parts) / parts,
        whole[2 * w + 2 :],
    )
    counts, values = torch.cat(fine), histograms.midpoints(7, histogram.dtype)
    return values[counts > 0], counts[counts > 0]
