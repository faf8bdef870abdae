"""GPTQ a second time, to hold the fast one against: slow, in numpy, with the inverse Hessian spelled out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plumbline.quantized_model.grid import Grid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Operated:
    """What came out, and per row how near (in steps of the grid) any of its weights came to a tie between two codes."""

    codes: Array
    scale: Array
    zero: Array
    nearest_tie: Array


def stored(values: Array, dtype: torch.dtype) -> Array:
    """Values as they are after a stay in the model's dtype."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).double().numpy()


def scale_and_zero(values: NDArray[np.floating], grid: Grid, dtype: torch.dtype) -> tuple[Array, Array]:
    """Of each row of `values` (rows, n), by the formulas of compressed-tensors' calculate_qparams."""
    first, last = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
    kind = values.dtype.type
    low, high = np.minimum(values.min(1), kind(0)), np.maximum(values.max(1), kind(0))
    if grid.symmetric:
        return stored(np.maximum(-low, high) / kind((last - first) / 2), dtype), np.zeros(len(values))
    scale = stored((high - low) / kind(last - first), dtype)
    return scale, np.clip(np.rint(first - low / scale.astype(kind)), first, last).astype(np.float64)


def brain_surgeon(weight: Tensor, hessian: Tensor, grid: Grid, damping: float, act_order: bool = False) -> Operated:
    """Optimal Brain Quantization with a fixed order (Frantar & Alistarh 2022, eq. 2 and 3): after each column the
    remaining weights take their optimal values, and its row and column leave the explicit inverse Hessian."""
    original, dtype = weight.float().numpy(), weight.dtype
    W, H = weight.double().numpy().copy(), hessian.double().numpy()
    rows, columns = W.shape
    width = grid.group_size or columns
    low, high = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
    Hinv = np.linalg.inv(H + damping * np.diag(H).mean() * np.eye(columns))
    order = sorted(range(columns), key=lambda j: (-H[j, j], j)) if act_order else list(range(columns))
    scale, zero = np.zeros((2, rows, columns // width))
    if grid.per_tensor:
        found = scale_and_zero(original.reshape(1, -1), grid, dtype)
        scale[:], zero[:] = (x.reshape(1, 1) for x in found)
    elif act_order:
        for g in range(columns // width):
            scale[:, g], zero[:, g] = scale_and_zero(original[:, g * width : (g + 1) * width], grid, dtype)
    codes, tie = np.zeros((rows, columns)), np.full(rows, np.inf)
    for j in order:
        g = j // width
        if j % width == 0 and not act_order and not grid.per_tensor:
            entered = original if width == columns else W[:, j : j + width]
            scale[:, g], zero[:, g] = scale_and_zero(entered, grid, dtype)
        at = W[:, j] / scale[:, g] + zero[:, g]
        inside = (at > low - 0.5) & (at < high + 0.5)
        tie = np.minimum(tie, np.where(inside, np.abs(at - np.floor(at) - 0.5), np.inf))
        codes[:, j] = np.clip(np.rint(at), low, high)
        running = stored((codes[:, j] - zero[:, g]) * scale[:, g], dtype)
        W -= np.outer((W[:, j] - running) / Hinv[j, j], Hinv[j])
        Hinv = Hinv - np.outer(Hinv[:, j], Hinv[j]) / Hinv[j, j]
    return Operated(codes, scale[:1] if grid.per_tensor else scale, zero[:1] if grid.per_tensor else zero, tie)
