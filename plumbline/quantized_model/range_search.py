"""The scale of least squared error among candidates: the same bits from range_search.c, if it is compiled, and PyTorch.

The search is most of what GPTQ costs with `range: hessian`: 68 candidates for every weight. In C the values of a group
stay in the cache of a core until all are tried.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from plumbline import kernels
from plumbline.quantized_model.grid import Grid, multiplier, scale_and_zero
from plumbline.quantized_model.numbers import Numbers

VERSION = 1
"""Interface version of range_search.c."""
CHUNK = 1 << 18
"""Values searched at a time, which bounds the memory for candidates."""
LANES, BLOCK = 16, 1024
"""A block of errors is summed in `LANES` partial sums, and blocks in float64."""


def least_error(
    values: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Tensor | None,
    shares: tuple[float, ...],
    grid: Grid,
    signed: bool,
    dtype: torch.dtype,
    global_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point (groups,) of least squared error among shares of the range; the first of equals.

    Args:
        values: (groups, group), float32 or float64.
        low, high: (groups,), ends of the range.
        weights: (periods, group), what a squared error counts: group i has those of row i modulo `periods`.
        shares: candidates; a signed grid tries each with both signs, the positive ones first.
        dtype: of the model.
    """
    values = values.contiguous()
    weights = None if weights is None else weights.contiguous()
    search = _compiled if values.device.type == "cpu" and library() is not None else _plain
    tried = torch.tensor(shares, dtype=low.dtype, device=low.device).unsqueeze(1)
    scales, zeros, step = [], [], max(1, CHUNK // values.shape[1])
    for start in range(0, len(values), step):
        w, a, b = (x[start : start + step] for x in (values, low, high))
        scale, zero = scale_and_zero(a * tried, b * tried, grid, dtype, global_scale)
        if signed:
            scale, zero = torch.cat((scale, -scale)), torch.cat((zero, zero))
        s = multiplier(scale, global_scale).to(w.dtype)
        best = search(w, weights, start, s, None if grid.symmetric else zero.to(w.dtype), grid.numbers)
        scales.append(scale.gather(0, best.unsqueeze(0)).squeeze(0))
        zeros.append(zero.gather(0, best.unsqueeze(0)).squeeze(0))
    return torch.cat(scales), torch.cat(zeros)


def _plain(w: Tensor, weights: Tensor | None, first: int, s: Tensor, z: Tensor | None, numbers: Numbers) -> Tensor:
    """(groups,) int64: the candidate of least error of every group.

    Args:
        w: (groups, group).
        weights: (periods, group), those of group i in row `first` + i modulo `periods`.
        s, z: (candidates, groups), multiplier and zero point; z None: the grid is symmetric.
    """
    v = None if weights is None else weights[torch.arange(first, first + len(w), device=w.device) % len(weights)]
    errors = []
    for number, scale in enumerate(s.unsqueeze(-1)):
        zero = None if z is None else z[number].unsqueeze(-1)
        q = w / scale
        q = numbers.round_(q) if zero is None else numbers.round_(q.add_(zero)).sub_(zero)
        q.mul_(scale).sub_(w).square_()
        errors.append(_sum(q if v is None else q.mul_(v)))
    return torch.stack(errors).argmin(0)


def _sum(errors: Tensor) -> Tensor:
    """(groups,) float64: the sum over the last dimension, in the order of range_search.c."""
    groups, size = errors.shape
    padded = torch.nn.functional.pad(errors, (0, -size % min(BLOCK, size + -size % LANES)))
    blocks = padded.view(groups, -1, min(BLOCK, padded.shape[1]) // LANES, LANES)
    lanes = torch.zeros_like(blocks[:, :, 0])
    for part in blocks.unbind(2):
        lanes += part
    while lanes.shape[-1] > 1:
        first, second = lanes.chunk(2, -1)
        lanes = first + second
    return lanes.squeeze(-1).to(torch.float64).cumsum(1)[:, -1]


def _compiled(w: Tensor, weights: Tensor | None, first: int, s: Tensor, z: Tensor | None, numbers: Numbers) -> Tensor:
    """The compiled `_plain`."""
    loaded = library()
    assert loaded is not None
    best = torch.empty(len(w), dtype=torch.int64)
    errors = torch.empty(len(s), dtype=torch.float64)
    search = loaded.plumbline_search_float if w.dtype == torch.float32 else loaded.plumbline_search_double
    search(
        *(*w.shape, len(s), w.data_ptr(), None if weights is None else weights.data_ptr()),
        *(first, 1 if weights is None else len(weights), s.data_ptr(), None if z is None else z.data_ptr()),
        *(numbers.first, numbers.last if numbers.mantissa is None else numbers.largest),
        *(-1 if numbers.mantissa is None else numbers.mantissa, numbers.exponent),
        *(errors.data_ptr(), best.data_ptr()),
    )
    return best


@cache
def library() -> Any:
    """The compiled `range_search.c`, None if it is not available; logs once which implementation is used."""
    loaded = kernels.load("quantized_model/range_search.c", VERSION)
    if loaded is None:
        return None
    address, number, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    for function in (loaded.plumbline_search_float, loaded.plumbline_search_double):
        function.argtypes = [
            *(number, number, number, address, address, number, number),
            *(address, address, real, real, integer, integer, address, address),
        ]
        function.restype = None
    return loaded
