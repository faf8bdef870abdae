"""Round to nearest, the baseline without calibration."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from plumbline.quantized_model.format_params import WeightRangeRule
from plumbline.quantized_model.grid import (
    Grid,
    QuantizedWeight,
    global_scale_of,
    multiplier,
    per_row,
    round_to_grid,
)
from plumbline.quantized_model.ranges import Ranges, weight_range


def rtn(
    weight: Tensor,
    grid: Grid,
    range: WeightRangeRule = "minmax",
    percentile: float = 99.9,
    signed_scale: bool = False,
    *,
    importance: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> QuantizedWeight:
    """Round every weight to the nearest point of its group's grid.

    Args:
        weight: (out, in), the model's dtype, which the scale takes.
        grid: numbers, group size (it divides `in`) or one scale per output channel, block or tensor, with or without
            zero points.
        range: which range of a group's weights the grid covers, see plumbline/quantized_model/ranges.py.
        percentile: acts with that range.
        signed_scale: the scale may be negative.
        importance: (in,), what the squared error of a channel counts with `imatrix`.
        global_scale: (1,) float32, where the grid has one; None: that of this weight.

    Raises:
        ValueError: the group size does not divide the width (`scheme.group_size_for` returns one that does).
    """
    if grid.group_size is not None and weight.shape[1] % grid.group_size:
        raise ValueError(
            f"group size {grid.group_size} does not divide the width {weight.shape[1]}; take a divisor of it"
        )
    if grid.is_two_level and global_scale is None:
        global_scale = global_scale_of(weight)
    ranges = partial(
        weight_range,
        grid=grid,
        dtype=weight.dtype,
        rule=range,
        percentile=percentile,
        signed=signed_scale,
        global_scale=global_scale,
    )
    return to_nearest(weight, grid, ranges, importance, global_scale)


def to_nearest(
    weight: Tensor,
    grid: Grid,
    ranges: Ranges,
    importance: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> QuantizedWeight:
    """`rtn` with any rule for scale and zero point."""
    rows, columns = weight.shape
    scale, zero = grid_of(weight, grid, ranges, importance)
    s = per_row(multiplier(scale, global_scale), grid, rows).to(torch.float32)
    W = weight.to(torch.float32)
    if grid.block is not None:
        codes = round_to_grid(W, s.repeat_interleave(grid.block[1], dim=1)[:, :columns], grid)
    else:
        z = per_row(zero, grid, rows).unsqueeze(-1)
        codes = round_to_grid(W.reshape(rows, s.shape[1], -1), s.unsqueeze(-1), grid, z).view(rows, columns)
    zero_point = None if grid.symmetric else zero.to(torch.int8)
    return QuantizedWeight(codes.to(torch.int8), scale, grid, zero_point, global_scale)


def grid_of(weight: Tensor, grid: Grid, ranges: Ranges, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point (float32) of every group of a weight (out, in): (out, groups), (1, 1) or by blocks.

    Args:
        importance: (in,), what the squared error of a channel counts.
    """
    if importance is not None:
        importance = importance.unsqueeze(0) if grid.is_split_by_rows else importance.expand(len(weight), -1)
        importance = _grouped(importance, grid)
    return ranges(_grouped(weight, grid), importance=importance)


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    """The weight by groups, float32: (out, groups, group), (1, 1, out * in) per tensor, or (blocks of rows, blocks of
    columns, values of a block), with zeros beyond the edges."""
    W = weight.to(torch.float32)
    if grid.per_tensor:
        return W.reshape(1, 1, -1)
    if grid.block is None:
        return W.reshape(len(W), -1, grid.group_size or W.shape[1])
    height, width = grid.block
    W = torch.nn.functional.pad(W, (0, -W.shape[1] % width, 0, -len(W) % height))
    W = W.view(len(W) // height, height, -1, width).transpose(1, 2)
    return W.reshape(*W.shape[:2], height * width)
