"""Round to nearest: no calibration; the yardstick for every method that has one."""

from __future__ import annotations

import torch
from torch import Tensor

from assets.quantized_model.grid import Grid, QuantizedWeight, round_to_grid
from assets.quantized_model.params import RangeRule
from assets.quantized_model.ranges import weight_range


def rtn(weight: Tensor, grid: Grid, range: RangeRule = "minmax", percentile: float = 99.9) -> QuantizedWeight:
    """Round every weight to the nearest point of its group's grid.

    Args:
        weight: (out, in), the model's dtype, which the scale takes.
        grid: bits, group size (it divides `in`) or one scale per output channel or tensor, with or without zero points.
        range: which range of a group's weights the grid covers, see assets/quantized_model/ranges.py.
        percentile: acts with that range.

    Raises:
        ValueError: the group size does not divide the width (`scheme.group_size_for` finds one that does).
    """
    rows, columns = weight.shape
    if grid.group_size is not None and columns % grid.group_size:
        raise ValueError(f"group size {grid.group_size} does not divide the width {columns}; take a divisor of it")
    W = weight.to(torch.float32)
    grouped = W.reshape(1, 1, -1) if grid.per_tensor else W.reshape(rows, -1, grid.group_size or columns)
    scale, zero = weight_range(grouped, grid.bits, grid.symmetric, weight.dtype, range, percentile)
    codes = round_to_grid(grouped, scale.to(torch.float32).unsqueeze(-1), grid.bits, zero.unsqueeze(-1))
    zero_point = None if grid.symmetric else zero.to(torch.int8)
    return QuantizedWeight(codes.reshape(rows, columns).to(torch.int8), scale, grid, zero_point)
