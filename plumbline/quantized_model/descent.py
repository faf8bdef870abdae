"""Exact coordinate descent over the codes of a weight: minimizes tr(R S R^T) with R = W - dequantized codes.

Two implementations give the same bits: `descent.c`, compiled when Plumbline is installed, and PyTorch. In C, a code
that does not change costs a comparison, and one that does a row of S: about 20 times as fast on the bundled model.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from plumbline import kernels
from plumbline.quantized_model.grid import (
    Grid,
    QuantizedWeight,
    multiplier,
    per_row,
    running_dtype,
    running_weight,
)

MARGIN = 1 + 1e-9
"""A code changes if its gain exceeds its cost by this factor: above rounding errors, otherwise negligible."""
VERSION = 1
"""Interface version of descent.c."""
SWEEPS = 1000
"""Largest number of sweeps; real layers need 5 to 40."""
ROWS = 256
"""Rows processed at a time, which bounds the memory for gradients and levels."""


def descend(W: Tensor, S: Tensor, start: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Improve the codes of `start` until no move of a single code to the next grid point lowers tr(R S R^T).

    Each sweep visits the columns in order; a code moves to the next grid point whenever that lowers the row's r S r^T.
    Moving a weight by d changes it by exactly d (d S_jj - 2 (r S)_j), so the result is never worse than the start. Rows
    do not interact. Along one column the objective is a parabola: a point better than both neighbours is the optimum.

    Args:
        W: (out, in), the model's dtype.
        S: (in, in), float64, symmetric.
        start: codes, scales and zero points; only codes change, and only where S_jj is positive.

    Returns:
        (out, in) int8 codes, and (out,) float64 r S r^T of every row.
    """
    S = S.contiguous()
    function = library() if W.device.type == "cpu" else None
    codes = start.codes.clone(memory_format=torch.contiguous_format)
    grid, (rows, columns) = start.grid, codes.shape
    scales = per_row(multiplier(start.scale, start.global_scale), grid, rows)
    zeros = None if start.zero_point is None else per_row(start.zero_point, grid, rows)
    dtype, width = running_dtype(grid, start.scale.dtype), grid.width_of_group(columns)
    lost = []
    for first_row in range(0, rows, ROWS):
        part = slice(first_row, first_row + ROWS)
        w, q, scale, zero = W[part].double(), codes[part], scales[part], None if zeros is None else zeros[part]
        shared = slice(1) if grid.per_tensor else slice(None)
        levels = _levels(scale[shared], None if zero is None else zero[shared], grid, dtype)
        G = (w - running_weight(q, scale, zero, grid, dtype)) @ S
        mirrored = _mirror(q, scale, width)
        if function is None:
            _descend(S, G, q, levels.expand(len(G), -1, -1), width)
        else:
            groups, count = levels.shape[1:]
            stride = 0 if grid.per_tensor else groups * count
            pointers = S.data_ptr(), columns, G.data_ptr(), q.data_ptr(), len(G), levels.data_ptr()
            if function(*pointers, stride, width, grid.numbers.first, count, MARGIN, SWEEPS) < 0:
                raise MemoryError("out of memory for the list of changed codes")
        if mirrored:
            _mirror(q, scale, width)
        lost.append(((w - running_weight(q, scale, zero, grid, dtype)) * G).sum(1))
    return codes, torch.cat(lost)


def _levels(scale: Tensor, zero: Tensor | None, grid: Grid, dtype: torch.dtype) -> Tensor:
    """(rows, groups, codes) float64: the weights that the codes stand for, rising, rounded to `dtype`."""
    codes = torch.arange(grid.numbers.first, grid.numbers.last + 1, dtype=scale.dtype, device=scale.device)
    numbers = grid.numbers.values(codes)
    steps = numbers.expand(*scale.shape, -1) if zero is None else numbers - zero.to(scale.dtype).unsqueeze(-1)
    levels = (steps * scale.unsqueeze(-1)).to(dtype).double()
    return torch.where(scale.unsqueeze(-1) < 0, levels.flip(-1), levels).contiguous()


def _mirror(codes: Tensor, scale: Tensor, width: int) -> bool:
    """Exchange code q and -1 - q, in place, where the scale is negative, so that weights rise with codes.

    Returns:
        Whether there is a negative scale.
    """
    negative = scale < 0
    if not bool(negative.any()):
        return False
    columns = negative.repeat_interleave(width, dim=1)
    codes.bitwise_xor_(-columns.to(torch.int8))
    return True


def _descend(S: Tensor, G: Tensor, codes: Tensor, levels: Tensor, width: int) -> None:
    """descent.c in PyTorch, column by column over all rows; changes codes and G = R S (rows, in) in place."""
    first, count = -(levels.shape[2] // 2), levels.shape[2]
    used = [j for j, s in enumerate(S.diagonal().tolist()) if s > 0]
    rows = torch.arange(len(G), device=G.device)
    for _ in range(SWEEPS):
        moved = torch.zeros(len(G), dtype=torch.bool, device=G.device)
        for j in used:
            level, at = levels[:, j // width], rows
            while len(at):
                g, code = G[at, j], codes[at, j].long() - first
                to = torch.where(g > 0, code + 1, code - 1)
                inside = (to >= 0) & (to < count)
                step = level[at, to.clamp(0, count - 1)] - level[at, code]
                cost = torch.where(g > 0, step, -step) * S[j, j]
                better = inside & (cost > 0) & (2 * g.abs() > MARGIN * cost)
                at, step, to = at[better], step[better], to[better]
                if len(at):
                    codes[at, j] = (to + first).to(torch.int8)
                    G[at] = G[at] - step.unsqueeze(1) * S[j]
                    moved[at] = True
        rows = moved.nonzero().view(-1)
        if not len(rows):
            return


@cache
def library() -> Any:
    """The compiled `plumbline_descend`; None if it is not available."""
    loaded = kernels.load("quantized_model/descent.c", VERSION)
    if loaded is None:
        return None
    function = loaded.plumbline_descend
    address, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [address, number, address, address, number, address, *[number] * 4]
    function.argtypes += [ctypes.c_double, number]
    function.restype = number
    return function
