"""From the statistics of a calibration set to a quantized model: transform, bits per layer, rounding, activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assets.activation_stats.histogram import Histogram
from assets.base_model.one_thread import one_thread
from assets.quantized_model.activations import activation_range, activation_scale
from assets.quantized_model.gptq import gptq
from assets.quantized_model.grid import Grid, QuantizedWeight, dequantize
from assets.quantized_model.params import SchemeParams
from assets.quantized_model.ranges import weight_range
from assets.quantized_model.rtn import rtn
from assets.quantized_model.scheme import layer_group_sizes, quantizable_linears

Factors = Any  # of assets/quantized_model/factors.py
Samples = Sequence[tuple[str, Sequence[int]]]
"""(sample id, token ids)."""


class Site(Protocol):
    """What quantizing reads of a site's statistics (`SiteStats` in assets/activation_stats has it, and more)."""

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


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized model beside the base model that it was made from.

    Attributes:
        layers: by module name of a Linear, in the model's order.
        parameters: every other parameter that a transform changed (norm weights, biases), by its name in the state
            dict, in the model's dtype.
        notes: what else there is to say, JSON-able: facts of the transform, of the bits per layer, of propagation.
    """

    layers: dict[str, Layer]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def quantize_model(
    model: PreTrainedModel,
    stats: Statistics,
    scheme: SchemeParams,
    samples: Samples | None = None,
    factors: Factors | None = None,
) -> Quantized:
    """Quantize every Linear that the scheme takes from its site's statistics, without running the model.

    The members of a site are solved stacked: rows do not interact, and a Hessian is factored once for q, k and v.

    Args:
        model: the base model; not changed.
        stats: of the calibration set.
        samples: the calibration set itself, which `propagate: quantized` runs; not read otherwise.
        factors: of Hessians, shared between the schemes of one calibration set; None: nothing to share.

    Raises:
        ValueError: the scheme does not suit the model or the statistics; nothing was computed then.
    """
    linears = quantizable_linears(model, scheme.ignore)
    sizes = layer_group_sizes(linears, scheme)
    sites = {member: site for site in stats.sites.values() for member in site.members}
    by_site: dict[str, list[str]] = {}
    for name in linears:
        by_site.setdefault(sites[name].members[0] if name in sites else name, []).append(name)
    found: dict[str, Layer] = {}
    # A column is too short to share (more threads make it slower, much so on a busy machine), and sums of matrix
    # products come out in one order whatever the number of cores.
    with one_thread():
        for names in by_site.values():
            site = sites.get(names[0])
            if site is None and (scheme.method != "rtn" or scheme.activations is not None):
                _require_unreached(names, stats, scheme)
            members = {name: linears[name].weight.detach() for name in names}
            grid = Grid(scheme.weight_bits, sizes[names[0]], scheme.symmetric, scheme.per_tensor)
            found |= quantize_site(members, site, grid, scheme, factors)
    return Quantized({name: found[name] for name in linears})


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
    damping, dead, fallback, scale, zero = None, 0, None, None, None
    if scheme.method == "gptq":
        S = site.hessian if site is not None else torch.zeros(W.shape[1], W.shape[1])
        if S is None:
            raise ValueError(
                "the statistics hold no Hessian, which method gptq reads: set statistics.hessian: true in params.yaml"
            )
        tokens = site.tokens if site is not None else 0
        settings = scheme.damping, scheme.block_size, scheme.act_order
        solution = gptq(W, S, tokens, grid, *settings, factors=factors, ranges=ranges_of(grid, scheme, W.dtype))
        Q, damping, dead, fallback = solution.weight, solution.damping, solution.dead, solution.fallback
    else:
        Q = rtn(W, grid, scheme.range, scheme.percentile)
    activations = scheme.activations
    if activations is not None and not activations.dynamic and site is not None:
        low, high = activation_range(site, activations)
        scale, zero = activation_scale(low, high, activations.bits, activations.symmetric, W.dtype)
    errors = _relative_errors(W, dequantize(Q), site, [len(w) for w in members.values()])
    layers, start = {}, 0
    for (name, weight), error in zip(members.items(), errors, strict=True):
        part = Q if len(members) == 1 else Q.rows(start, start + len(weight))
        shown = None if activations is None or activations.symmetric else zero
        layers[name] = Layer(part, scale, grid.group_size, damping, dead, fallback, error, shown)
        start += len(weight)
    return layers


def ranges_of(grid: Grid, scheme: SchemeParams, dtype: torch.dtype) -> Any:
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


def _relative_errors(W: Tensor, running: Tensor, site: Site | None, rows: list[int]) -> list[float | None]:
    """tr(dW S dW^T) / tr(W S W^T) per member; in float32, because it is shown and decides nothing."""
    if site is None or site.hessian is None:
        return [None] * len(rows)
    S = site.hessian.to(W.device, torch.float32)
    dW, W = (W.float() - running.float()), W.float()
    lost, whole = ((dW @ S) * dW).sum(1), ((W @ S) * W).sum(1)
    parts = zip(torch.split(lost, rows), torch.split(whole, rows), strict=True)
    return [float(a.sum() / b.sum()) if b.sum() > 0 else None for a, b in parts]


def _require_unreached(names: list[str], stats: Statistics, scheme: SchemeParams) -> None:
    """A layer without statistics is a fallback where no token came by, and a mistake otherwise."""
    strange = [name for name in names if name not in stats.unreached]
    if strange:
        raise ValueError(
            f"{strange[0]} has no statistics, which method {scheme.method} reads: take it out of statistics.ignore in "
            "params.yaml, or add it to the scheme's ignore"
        )
    if scheme.activations is not None:
        raise ValueError(
            f"no token of the calibration set reached {names[0]}, so there is no range for its activations: choose a "
            "larger or more varied set, or add it to the scheme's ignore"
        )
