"""Exact coordinate descent over the codes of a weight, for tr(R S R^T) with R = W - what the codes stand for.

One definition in two implementations that give the same bits: `descent.c`, compiled when Plumbline is installed, and
PyTorch. Compiled, a code that stays costs a comparison and one that changes a row of S; on the bundled model's layers
that is about 20 times as fast.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from plumbline import kernels
from plumbline.quantized_model.grid import QuantizedWeight, code_range, dequantize

MARGIN = 1 + 1e-9
"""A change must gain that much more than nothing: far above rounding errors of the gradient, far below what counts."""
VERSION = 1
"""Of the interface of descent.c."""
SWEEPS = 1000
"""At most; real layers need 5 to 40."""
ROWS = 256
"""Rows worked on at once: bounds the memory for gradients and levels."""


def descend(W: Tensor, S: Tensor, start: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Codes from which no step of a single one to the next grid point lowers tr(R S R^T), starting at `start`.

    Columns are gone through in order, again and again; a code moves to the next grid point whenever that lowers the
    row's r S r^T. Moving the weight by d changes it by d (d S_jj - 2 (r S)_j) exactly, so every change is a gain and
    the end is never worse than the start. Rows do not interact. Along one column the objective is a parabola, so that
    a point better than both its neighbours is the best of the column.

    Args:
        W: (out, in), the model's dtype.
        S: (in, in), float64, symmetric.
        start: codes, scales and zero points; only codes change. Where S_jj is zero they stay.

    Returns:
        (out, in) int8 codes, and (out,) float64 r S r^T of every row.
    """
    S = S.contiguous()
    function = library() if W.device.type == "cpu" else None
    codes = start.codes.clone(memory_format=torch.contiguous_format)
    first, columns = code_range(start.bits)[0], len(S)
    lost = []
    for begin in range(0, len(codes), ROWS):
        part = slice(begin, begin + ROWS)
        one = slice(None) if start.grid.per_tensor else part
        scale, zero = start.scale[one], None if start.zero_point is None else start.zero_point[one]
        levels, w, q = _levels(scale, zero, start.bits), W[part].double(), codes[part]
        G = (w - dequantize(QuantizedWeight(q, scale, start.grid, zero))) @ S
        if function is None:
            _descend(S, G, q, levels.expand(len(G), -1, -1))
        else:
            groups, count = levels.shape[1:]
            stride = 0 if start.grid.per_tensor else groups * count
            pointers = S.data_ptr(), columns, G.data_ptr(), q.data_ptr(), len(G), levels.data_ptr()
            if function(*pointers, stride, columns // groups, first, count, MARGIN, SWEEPS) < 0:
                raise MemoryError("no memory for a list of changed codes")
        lost.append(((w - dequantize(QuantizedWeight(q, scale, start.grid, zero))) * G).sum(1))
    return codes, torch.cat(lost)


def _levels(scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """(rows, groups, 2^bits) float64: what every code stands for, the product rounded to the scale's dtype."""
    low, high = code_range(bits)
    codes = torch.arange(low, high + 1, dtype=scale.dtype, device=scale.device)
    steps = codes.expand(*scale.shape, -1) if zero is None else codes - zero.to(scale.dtype).unsqueeze(-1)
    return (steps * scale.unsqueeze(-1)).double().contiguous()


def _descend(S: Tensor, G: Tensor, codes: Tensor, levels: Tensor) -> None:
    """descent.c in PyTorch, column by column over all rows; G (rows, in), R S, and codes change."""
    first, count = -(levels.shape[2] // 2), levels.shape[2]
    group = len(S) // levels.shape[1]
    used = [j for j, s in enumerate(S.diagonal().tolist()) if s > 0]
    rows = torch.arange(len(G), device=G.device)
    for _ in range(SWEEPS):
        moved = torch.zeros(len(G), dtype=torch.bool, device=G.device)
        for j in used:
            level, at = levels[:, j // group], rows
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
    """The compiled `plumbline_descend`; None where there is none."""
    loaded = kernels.load("quantized_model/descent.c", VERSION)
    if loaded is None:
        return None
    function = loaded.plumbline_descend
    address, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [address, number, address, address, number, address, *[number] * 4]
    function.argtypes += [ctypes.c_double, number]
    function.restype = number
    return function
