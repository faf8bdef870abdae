"""Quantizing the Linears of a site, which read one input, from its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plumbline.quantized_model.activations import input_scales
from plumbline.quantized_model.adaround import adaround
from plumbline.quantized_model.correction import CrossMoments, corrected
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.gptq import Solution, gptq
from plumbline.quantized_model.grid import Grid, dequantize, global_scale_of, scale_dtype
from plumbline.quantized_model.input_statistics import InputStatistics
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.ranges import ranges_of
from plumbline.quantized_model.rtn import rtn

NO_TOKENS = "no tokens reached this layer"
SHOWN_ROWS = 192
"""Rows of a layer on which the reported error is computed."""


def quantize_site(
    members: Mapping[str, Tensor],
    site: InputStatistics | None,
    grid: Grid,
    scheme: SchemeParams,
    factors: Factors | None = None,
    errors: bool = True,
    *,
    cross: CrossMoments | None = None,
) -> dict[str, Layer]:
    """Quantize the weights (out, in) of Linears that read one input.

    Args:
        site: statistics of the input; None: no tokens.
        factors: cache of Hessian factors.
        errors: compute each layer's relative error, which is reported and influences nothing.
        cross: moments of the inherited error, to correct the weights by `scheme.correction` before they are rounded.
            Reported errors are then those of the corrected weights.
    """
    targets = dict(members)
    if cross is not None and site is not None and site.hessian is not None:
        factors = Factors() if factors is None else factors  # the correction and the solver share one
        targets = _corrected(members, cross, site.hessian, scheme, factors)
    parts = [list(members)] if grid.is_stacked else [[name] for name in members]
    dtype = next(iter(members.values())).dtype
    # engines merge the members of a site (q, k, v; gate, up) into one matrix, which has one global scale
    shared = global_scale_of(torch.stack([W.abs().amax() for W in targets.values()])) if grid.is_two_level else None
    layers = [
        _quantize_stacked({name: targets[name] for name in part}, dtype, site, grid, scheme, factors, errors, shared)
        for part in parts
    ]
    return {name: layer for part in layers for name, layer in part.items()}


def _corrected(
    members: Mapping[str, Tensor], cross: CrossMoments, hessian: Tensor, scheme: SchemeParams, factors: Factors
) -> dict[str, Tensor]:
    """The weights that undo the inherited error, float32; unchanged where the Hessian cannot be factored."""
    W = torch.cat(list(members.values()))
    F = factors.get(hessian, scheme.damping, scheme.act_order, W.device) if bool(hessian.diagonal().any()) else None
    if F is None:
        return dict(members)
    lengths = [len(weight) for weight in members.values()]
    rows = torch.split(corrected(W, cross, F, scheme.correction).float(), lengths)
    return dict(zip(members, rows, strict=True))


def _quantize_stacked(
    members: dict[str, Tensor],
    dtype: torch.dtype,
    site: InputStatistics | None,
    grid: Grid,
    scheme: SchemeParams,
    factors: Factors | None,
    errors: bool,
    global_scale: Tensor | None,
) -> dict[str, Layer]:
    W = torch.cat(list(members.values())) if len(members) > 1 else next(iter(members.values()))
    solution = _rounded(W, dtype, site, grid, scheme, factors, global_scale)
    inputs: dict[str, Any] = {} if scheme.activations is None else input_scales(site, scheme.activations, dtype)
    layers, start = {}, 0
    for name, weight in members.items():
        part = solution.weight if len(members) == 1 else solution.weight.rows(start, start + len(weight))
        lost = None if solution.lost is None else solution.lost[start : start + len(weight)]
        error = relative_error(weight, dequantize(part), site, lost) if errors else None
        how = solution.damping, solution.dead, solution.fallback, error
        layers[name] = replace(Layer(part, None, grid.group_size, *how), **inputs)
        start += len(weight)
    return layers


def _rounded(
    W: Tensor,
    dtype: torch.dtype,
    site: InputStatistics | None,
    grid: Grid,
    scheme: SchemeParams,
    factors: Factors | None,
    global_scale: Tensor | None,
) -> Solution:
    importance = site.sum_sq if scheme.range == "imatrix" and site is not None else None
    options = scheme.range, scheme.percentile, scheme.signed_scale
    nearest = partial(rtn, W, grid, *options, importance=importance, global_scale=global_scale)
    if scheme.method == "rtn":
        return Solution(nearest(), None, 0, None)
    if site is None or site.hessian is None:
        return Solution(nearest(), None, W.shape[1], NO_TOKENS)
    if site.tokens < scheme.expert_floor * W.shape[1]:
        return Solution(
            nearest(), None, 0, f"{site.tokens} tokens reached this expert, under the scheme's expert_floor"
        )
    shared: dict[str, Any] = {
        "factors": factors,
        "ranges": ranges_of(grid, scheme, dtype, global_scale),
        "global_scale": global_scale,
    }
    problem = W, site.hessian, site.tokens, grid, scheme.damping
    if scheme.method == "adaround":
        return adaround(*problem, **shared)
    solution = gptq(*problem, scheme.block_size, scheme.act_order, **shared)
    # Scales are values of `dtype`; a corrected weight is float32, which gptq takes for their dtype.
    scale = solution.weight.scale.to(scale_dtype(grid, dtype))
    return replace(solution, weight=replace(solution.weight, scale=scale))


def relative_error(
    W: Tensor, running: Tensor, site: InputStatistics | None, lost: Tensor | None = None
) -> float | None:
    """tr(dW S dW^T) / tr(W S W^T) of one Linear, dW = W - running; None without a Hessian.

    In float32, on at most `SHOWN_ROWS` rows, spread evenly: the error is reported and influences nothing.

    Args:
        lost: (out,) diag(dW S dW^T), if the solver computed it.
    """
    if site is None or site.hessian is None:
        return None
    rows = torch.arange(min(len(W), SHOWN_ROWS)) * len(W) // min(len(W), SHOWN_ROWS)
    S, W, running = site.hessian.to(W.device, torch.float32), W[rows].float(), running[rows].float()
    whole = float(((W @ S) * W).sum())
    dW = W - running
    error = float(((dW @ S) * dW).sum()) if lost is None else float(lost[rows].sum())
    return error / whole if whole > 0 else None
