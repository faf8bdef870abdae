"""From the statistics of a site to the quantized weights of the Linears that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from assets.base_model.one_thread import one_thread
from assets.quantized_model.gptq import gptq
from assets.quantized_model.grid import QuantizedWeight, dequantize
from assets.quantized_model.minmax import activation_scale
from assets.quantized_model.params import SchemeParams
from assets.quantized_model.rtn import rtn
from assets.quantized_model.scheme import layer_group_sizes


class Site(Protocol):
    """What quantizing reads of a site's statistics (`SiteStats` in assets/activation_stats has it, and more)."""

    @property
    def members(self) -> tuple[str, ...]: ...
    @property
    def tokens(self) -> int: ...
    @property
    def hessian(self) -> Tensor | None: ...
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
        weight: codes and scales.
        input_scale: static activation scale, shape (1,); None where activations are not quantized.
        group_size: the one used, which may be a divisor of the scheme's; None: per channel.
        damping: GPTQ: share of the mean Hessian diagonal that was added.
        dead: GPTQ: input channels that the calibration set never used.
        fallback: why it was rounded to nearest although the scheme says otherwise; None: it was not.
        error: relative output error on the calibration set, tr(dW S dW^T) / tr(W S W^T), of the weight alone; None
            where there is no Hessian.
    """

    weight: QuantizedWeight
    input_scale: Tensor | None
    group_size: int | None
    damping: float | None = None
    dead: int = 0
    fallback: str | None = None
    error: float | None = None


def quantize_layers(linears: Mapping[str, nn.Linear], stats: Statistics, scheme: SchemeParams) -> dict[str, Layer]:
    """Quantize every Linear from its site's statistics, in the order of `linears`.

    The members of a site are solved stacked: rows do not interact, and a Hessian is factored once for q, k and v.

    Raises:
        ValueError: a width does not suit the scheme, or the statistics lack what the method reads.
    """
    sizes = layer_group_sizes(dict(linears), scheme)
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
            found |= _quantize_site(members, site, sizes[names[0]], scheme)
    return {name: found[name] for name in linears}


def _quantize_site(
    members: dict[str, Tensor], site: Site | None, group_size: int | None, scheme: SchemeParams
) -> dict[str, Layer]:
    W = torch.cat(list(members.values()))
    damping, dead, fallback, scale = None, 0, None, None
    if scheme.method == "gptq":
        S = site.hessian if site is not None else torch.zeros(W.shape[1], W.shape[1])
        if S is None:
            raise ValueError(
                "the statistics hold no Hessian, which method gptq reads: set statistics.hessian: true in params.yaml"
            )
        tokens = site.tokens if site is not None else 0
        solution = gptq(W, S, tokens, scheme.weight_bits, group_size, scheme.damping, scheme.block_size)
        Q, damping, dead, fallback = solution.weight, solution.damping, solution.dead, solution.fallback
    else:
        Q = rtn(W, scheme.weight_bits, group_size)
    if scheme.activations is not None and not scheme.activations.dynamic and site is not None:
        extremes = float(site.min.min()), float(site.max.max())
        scale = activation_scale(*extremes, scheme.activations.bits, W.dtype)
    errors = _relative_errors(W, dequantize(Q), site, [len(w) for w in members.values()])
    layers, start = {}, 0
    for (name, weight), error in zip(members.items(), errors, strict=True):
        part = Q.rows(start, start + len(weight))
        layers[name] = Layer(part, scale, group_size, damping, dead, fallback, error)
        start += len(weight)
    return layers


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
