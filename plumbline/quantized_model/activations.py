"""The static scales of a quantized Linear's input, from the site's statistics."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline.activation_stats.sketch import SiteStats, quantile
from plumbline.histogram import Histogram
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.grid import Grid, global_scale_of, round_to_grid, scale_and_zero
from plumbline.quantized_model.input_statistics import InputStatistics
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
    grid = _grid(params)
    scale, zero = scale_and_zero(low * shares, high * shares, grid, dtype)
    scale, zero = scale.double().unsqueeze(-1), zero.double().unsqueeze(-1)
    rounded = grid.numbers.values(round_to_grid(values, scale, grid, zero))
    errors = ((rounded - zero) * scale - values).square() @ counts
    best = SHRINKS[int(errors.argmin())]
    return low * best, high * best


def input_scales(site: InputStatistics | None, params: ActivationParams, dtype: torch.dtype) -> dict[str, Tensor]:
    """What Linears of a site store about their input, by the name of the field of `Layer`.

    Empty where activations are dynamic, or no token reached the site.

    Args:
        dtype: of the model.

    Raises:
        ValueError: as `activation_range`.
    """
    if params.range == "constant":
        return {"input_global_scale": torch.ones(1)}
    if params.dynamic or site is None:
        return {}
    low, high = activation_range(site, params)
    if params.type == "nvfp4":
        ends = torch.tensor([low, high], dtype=torch.float64) * params.headroom
        return {"input_global_scale": global_scale_of(ends.to(torch.float32))}
    scale, zero = activation_scale(low, high, params, dtype)
    return {"input_scale": scale} | ({} if params.symmetric else {"input_zero_point": zero})


def activation_scale(low: float, high: float, params: ActivationParams, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Static scale and zero point of a grid that covers [low, high] and zero; Linears of one site share them.

    Args:
        low, high: the range, see `activation_range`.
        dtype: of the model.

    Returns:
        scale (1,) in `dtype`, zero point (1,) int8, 0 where symmetric.
    """
    ends = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    scale, zero = scale_and_zero(*ends, _grid(params), dtype)
    return scale, zero.to(torch.int8)


def _grid(params: ActivationParams) -> Grid:
    return Grid(params.bits, symmetric=params.symmetric, type="int" if params.type == "int" else "float")


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
