"""From the statistics of a calibration set to a quantized model: transform, bits per layer, rounding, activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assets.activation_stats.histogram import Histogram
from assets.base_model.one_thread import one_thread
from assets.quantized_model.activations import activation_range, activation_scale
from assets.quantized_model.gptq import Solution, gptq
from assets.quantized_model.grid import Grid, QuantizedWeight, dequantize
from assets.quantized_model.params import SchemeParams
from assets.quantized_model.ranges import weight_range
from assets.quantized_model.requirements import require_statistics
from assets.quantized_model.rtn import rtn
from assets.quantized_model.scheme import layer_group_sizes, quantizable_linears, remarks

Factors: TypeAlias = Any
Transform: TypeAlias = Any

NO_TOKENS = "no tokens reached this layer"
SHOWN_ROWS = 192
"""Of a layer whose error is shown."""

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
    require_statistics(linears, stats, scheme)
    if scheme.propagate == "quantized":
        propagated: Any = import_module("assets.quantized_model.propagate").propagated

        if samples is None:
            raise ValueError(
                "propagate: quantized runs the calibration set again, and none was given; remove propagate"
            )
        return propagated(model, samples, scheme, stats)
    sites = {member: site for site in stats.sites.values() for member in site.members}
    by_site: dict[str, list[str]] = {}
    for name in linears:
        by_site.setdefault(sites[name].members[0] if name in sites else name, []).append(name)
    # A column is too short to share (more threads make it slower, much so on a busy machine), and sums of matrix
    # products come out in one order whatever the number of cores.
    with one_thread():
        notes: dict[str, Any] = {"remarks": where} if (where := remarks(scheme)) else {}
        bits = _bits(linears, stats, scheme, notes)
        transform = _transform(model, linears, stats, scheme, notes)
        weights = {name: module.weight.detach() for name, module in linears.items()}
        found: dict[str, Layer] = {}
        for names in by_site.values():
            site, first = sites.get(names[0]), names[0]
            grid = Grid(bits[first], sizes[first], scheme.symmetric, scheme.per_tensor)
            members = {name: weights[name] for name in names}
            if transform is None:
                found |= quantize_site(members, site, grid, scheme, factors)
            else:
                found |= _quantize_transformed(transform, members, site, grid, scheme)
    return Quantized(
        {name: found[name] for name in linears}, {} if transform is None else dict(transform.parameters), notes
    )


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
        error = relative_error(weight, dequantize(part), site)
        layers[name] = Layer(part, scale, grid.group_size, found.damping, found.dead, found.fallback, error, zero)
        start += len(weight)
    return layers


def _rounded(W: Tensor, site: Site | None, grid: Grid, scheme: SchemeParams, factors: Factors | None) -> Solution:
    if scheme.method == "rtn":
        return Solution(rtn(W, grid, scheme.range, scheme.percentile), None, 0, None)
    if site is None or site.hessian is None:
        return Solution(rtn(W, grid, scheme.range, scheme.percentile), None, W.shape[1], NO_TOKENS)
    if scheme.method == "adaround":
        adaround: Any = import_module("assets.quantized_model.adaround").adaround

        return adaround(W, site.hessian, site.tokens, grid, scheme.damping)
    settings = scheme.damping, scheme.block_size, scheme.act_order
    ranges = ranges_of(grid, scheme, W.dtype)
    return gptq(W, site.hessian, site.tokens, grid, *settings, factors=factors, ranges=ranges)


def _bits(
    linears: Mapping[str, nn.Linear], stats: Statistics, scheme: SchemeParams, notes: dict[str, Any]
) -> dict[str, int]:
    if scheme.mixed is None:
        return dict.fromkeys(linears, scheme.weight_bits)
    allocate: Any = import_module("assets.quantized_model.mixed").allocate

    bits = allocate(linears, stats, scheme)
    weights = {
        width: sum(linears[n].weight.numel() for n in bits if bits[n] == width) for width in sorted({*bits.values()})
    }
    notes["mixed"] = {
        "average_bits": round(sum(width * n for width, n in weights.items()) / sum(weights.values()), 4),
        "layers": {str(width): sum(b == width for b in bits.values()) for width in weights},
    }
    return bits


def _transform(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    stats: Statistics,
    scheme: SchemeParams,
    notes: dict[str, Any],
) -> Transform | None:
    if scheme.transform is None:
        return None
    find: Any = getattr(import_module(f"assets.quantized_model.{scheme.transform}"), scheme.transform)
    transform = find(model, linears, stats, scheme)
    notes["transform"] = {"name": scheme.transform, **transform.facts, "unfolded": dict(transform.unfolded)}
    return transform


def _quantize_transformed(
    transform: Transform, members: dict[str, Tensor], site: Site | None, grid: Grid, scheme: SchemeParams
) -> dict[str, Layer]:
    """`quantize_site` of the folded weights behind the scaled input; errors against the weights as they were."""
    scaled_site: Any = import_module("assets.quantized_model.folding").scaled_site

    scales = transform.scales.get(next(iter(members)) if site is None else site.members[0])
    folded = {name: transform.weights.get(name, W) for name, W in members.items()}
    scaled = site if site is None or scales is None else scaled_site(site, scales)
    found = {}
    for name, layer in quantize_site(folded, scaled, grid, scheme).items():
        s = 1.0 if scales is None else scales.to(folded[name].device)
        W, base = folded[name].float() / s, members[name].float()
        # What the scales of a later layer made of a row: rows are multiples of what they were.
        row = (W * base).sum(1, keepdim=True) / base.square().sum(1, keepdim=True)
        running = dequantize(layer.weight).float() / s / torch.where(row > 0, row, 1.0)
        found[name] = replace(layer, error=relative_error(members[name], running, site))
    return found


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


def relative_error(W: Tensor, running: Tensor, site: Site | None) -> float | None:
    """tr(dW S dW^T) / tr(W S W^T) of one Linear, dW = W - running; None where there is no Hessian.

    In float32, and of at most `SHOWN_ROWS` rows spread evenly: it is shown and decides nothing.
    """
    if site is None or site.hessian is None:
        return None
    rows = torch.arange(min(len(W), SHOWN_ROWS)) * len(W) // min(len(W), SHOWN_ROWS)
    S, W, running = site.hessian.to(W.device, torch.float32), W[rows].float(), running[rows].float()
    lost, whole = (float(((A @ S) * A).sum()) for A in (W - running, W))
    return lost / whole if whole > 0 else None
