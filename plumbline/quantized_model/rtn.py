"""Round to nearest, the baseline without calibration."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from plumbline.quantized_model.grid import Grid, QuantizedWeight, round_to_grid
from plumbline.quantized_model.params import WeightRangeRule
from plumbline.quantized_model.ranges import Ranges, weight_range


def rtn(
    weight: Tensor, grid: Grid, range: WeightRangeRule = "minmax", percentile: float = 99.9, signed_scale: bool = False
) -> QuantizedWeight:
    """Round every weight to the nearest point of its group's grid.

    Args:
        weight: (out, in), the model's dtype, which the scale takes.
        grid: bits, group size (it divides `in`) or one scale per output channel or tensor, with or without zero points.
        range: which range of a group's weights the grid covers, see plumbline/quantized_model/ranges.py.
        percentile: acts with that range.
        signed_scale: the scale may be negative.

    Raises:
        ValueError: the group size does not divide the width (`scheme.group_size_for` returns one that does).
    """
    if grid.group_size is not None and weight.shape[1] % grid.group_size:
        raise ValueError(
            f"group size {grid.group_size} does not divide the width {weight.shape[1]}; take a divisor of it"
        )
    ranges = partial(
        weight_range,
        bits=grid.bits,
        symmetric=grid.symmetric,
        dtype=weight.dtype,
        rule=range,
        percentile=percentile,
        signed=signed_scale,
    )
    return to_nearest(weight, grid, ranges)


def to_nearest(weight: Tensor, grid: Grid, ranges: Ranges) -> QuantizedWeight:
    """`rtn` with any rule for scale and zero point."""
    scale, zero = grid_of(weight, grid, ranges)
    grouped = _grouped(weight, grid)
    codes = round_to_grid(grouped, scale.to(torch.float32).unsqueeze(-1), grid.bits, zero.unsqueeze(-1))
    zero_point = None if grid.symmetric else zero.to(torch.int8)
    return QuantizedWeight(codes.reshape(weight.shape).to(torch.int8), scale, grid, zero_point)


def grid_of(weight: Tensor, grid: Grid, ranges: Ranges, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point (float32) of every group of a weight (out, in): (out, groups) or (1, 1).

    Args:
        importance: (in,), what the squared error of a channel counts.
    """
    if importance is not None:
        importance = importance.expand(len(weight), -1) if grid.per_tensor else importance.unsqueeze(0)
        importance = _grouped(importance, grid)
    return ranges(_grouped(weight, grid), importance=importance)


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    """The weight by groups: (out, groups, group), or (1, 1, out * in) per tensor; float32."""
    W = weight.to(torch.float32)
    return W.reshape(1, 1, -1) if grid.per_tensor else W.reshape(len(W), -1, grid.group_size or W.shape[1])
