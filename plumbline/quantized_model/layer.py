"""The Linears that read one input, quantized from the statistics of that input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from plumbline.activation_stats.params import StatisticsParams
from plumbline.histogram import Histogram
from plumbline.quantized_model.activations import activation_range, activation_scale
from plumbline.quantized_model.adaround import adaround
from plumbline.quantized_model.gptq import Solution, gptq
from plumbline.quantized_model.grid import Grid, QuantizedWeight, dequantize
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.ranges import Ranges, weight_range
from plumbline.quantized_model.rtn import rtn

if TYPE_CHECKING:
    from plumbline.quantized_model.factors import Factors

NO_TOKENS = "no tokens reached this layer"
SHOWN_ROWS = 192
"""Of a layer whose error is shown."""


class Site(Protocol):
    """What quantizing reads of a site's statistics (`SiteStats` in plumbline/activation_stats has it, and more)."""

    @property
    def members(self) -> tuple[str, ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def sum(self) -> Tensor: ...
    @property
    def sum_abs(self) -> Tensor: ...
    @property
    def sum_sq(self) -> Tensor: ...
    @property
    def hessian(self) -> Tensor | None: ...
    @property
    def histogram(self) -> Histogram | None: ...
    @property
    def min(self) -> Tensor: ...
    @property
    def max(self) -> Tensor: ...


class Statistics(Protocol):
    """What quantizing reads of the statistics of a calibration set."""

    @property
    def sites(self) -> Mapping[str, Site]: ...
    @property
    def unreached(self) -> tuple[str, ...]: ...
    @property
    def settings(self) -> StatisticsParams: ...


@dataclass(frozen=True, eq=False)
class Layer:
    """A quantized Linear and what there is to say about it.

    Attributes:
        weight: codes, scales and zero points.
        input_scale: static activation scale, shape (1,); None where activations are not quantized, or dynamically.
        group_size: the one used, which may be a divisor of the scheme's; None: per channel or per tensor.
        damping: GPTQ, AdaRound: share of the mean Hessian diagonal that was added.
        dead: GPTQ, AdaRound: input channels that the calibration set never used.
        fallback: why it was rounded to nearest although the scheme says otherwise; None: it was not.
        error: relative output error on the calibration set, tr(dW S dW^T) / tr(W S W^T), of the weight alone, against
            the base model's weight whatever was folded into it; None where there is no Hessian.
        input_zero_point: int8, shape (1,); None where the activations' grid is symmetric or there is none.
    """

    weight: QuantizedWeight
    input_scale: Tensor | None
    group_size: int | None
    damping: float | None = None
    dead: int = 0
    fallback: str | None = None
    error: float | None = None
    input_zero_point: Tensor | None = None


def quantize_site(
    members: Mapping[str, Tensor],
    site: Site | None,
    grid: Grid,
    scheme: SchemeParams,
    factors: Factors | None = None,
) -> dict[str, Layer]:
    """Quantize the weights (out, in) of Linears that read one input, whose statistics are `site` (None: no tokens)."""
    parts = [{name: W} for name, W in members.items()] if grid.per_tensor else [dict(members)]
    layers = [_quantize_stacked(part, site, grid, scheme, factors) for part in parts]
    return {name: layer for part in layers for name, layer in part.items()}


def _quantize_stacked(
    members: dict[str, Tensor], site: Site | None, grid: Grid, scheme: SchemeParams, factors: Factors | None
) -> dict[str, Layer]:
    W = torch.cat(list(members.values()))
    found = _rounded(W, site, grid, scheme, factors)
    scale, zero = None, None
    activations = scheme.activations
    if activations is not None and not activations.dynamic and site is not None:
        low, high = activation_range(site, activations)
        scale, zero = activation_scale(low, high, activations.bits, activations.symmetric, W.dtype)
        zero = None if activations.symmetric else zero
    layers, start = {}, 0
    for name, weight in members.items():
        part = found.weight if len(members) == 1 else found.weight.rows(start, start + len(weight))
        lost = None if found.lost is None else found.lost[start : start + len(weight)]
        error = relative_error(weight, dequantize(part), site, lost)
        layers[name] = Layer(part, scale, grid.group_size, found.damping, found.dead, found.fallback, error, zero)
        start += len(weight)
    return layers


def _rounded(W: Tensor, site: Site | None, grid: Grid, scheme: SchemeParams, factors: Factors | None) -> Solution:
    nearest = partial(rtn, W, grid, scheme.range, scheme.percentile)
    if scheme.method == "rtn":
        return Solution(nearest(), None, 0, None)
    if site is None or site.hessian is None:
        return Solution(nearest(), None, W.shape[1], NO_TOKENS)
    ranges = ranges_of(grid, scheme, W.dtype)
    given = W, site.hessian, site.tokens, grid, scheme.damping
    if scheme.method == "adaround":
        return adaround(*given, factors=factors, ranges=ranges)
    return gptq(*given, scheme.block_size, scheme.act_order, factors=factors, ranges=ranges)


def ranges_of(grid: Grid, scheme: SchemeParams, dtype: torch.dtype) -> Ranges | None:
    """What GPTQ calls for scale and zero point of a group; None: minmax."""
    if scheme.range == "minmax":
        return None
    return partial(
        weight_range,
        bits=grid.bits,
        symmetric=grid.symmetric,
        dtype=dtype,
        rule=scheme.range,
        percentile=scheme.percentile,
    )


def relative_error(W: Tensor, running: Tensor, site: Site | None, lost: Tensor | None = None) -> float | None:
    """tr(dW S dW^T) / tr(W S W^T) of one Linear, dW = W - running; None where there is no Hessian.

    In float32, and of at most `SHOWN_ROWS` rows spread evenly: it is shown and decides nothing.

    Args:
        lost: (out,) diag(dW S dW^T), where the solver has found it already.
    """
    if site is None or site.hessian is None:
        return None
    rows = torch.arange(min(len(W), SHOWN_ROWS)) * len(W) // min(len(W), SHOWN_ROWS)
    S, W, running = site.hessian.to(W.device, torch.float32), W[rows].float(), running[rows].float()
    whole = float(((W @ S) * W).sum())
    dW = W - running
    error = float(((dW @ S) * dW).sum()) if lost is None else float(lost[rows].sum())
    return error / whole if whole > 0 else None
