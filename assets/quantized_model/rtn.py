"""Round to nearest: no calibration; the yardstick for every method that has one."""

from __future__ import annotations

import torch
from torch import Tensor

from assets.quantized_model.grid import Grid, QuantizedWeight, round_to_grid, symmetric_scale


def rtn(weight: Tensor, bits: int, group_size: int | None) -> QuantizedWeight:
    """Round every weight to the nearest point of its group's symmetric grid.

    Args:
        weight: (out, in), the model's dtype, which the scale takes.
        bits: width of a code, 2 to 8.
        group_size: divides `in`; None: one scale per output channel.

    Raises:
        ValueError: `group_size` does not divide the width (`scheme.group_size_for` finds one that does).
    """
    rows, columns = weight.shape
    if group_size is not None and columns % group_size:
        raise ValueError(f"group size {group_size} does not divide the width {columns}; take a divisor of it")
    grouped = weight.to(torch.float32).reshape(rows, -1, group_size or columns)
    scale = symmetric_scale(grouped.abs().amax(-1), bits, weight.dtype)
    codes = round_to_grid(grouped, scale.to(torch.float32).unsqueeze(-1), bits)
    return QuantizedWeight(codes.reshape(rows, columns).to(torch.int8), scale, Grid(bits, group_size))
