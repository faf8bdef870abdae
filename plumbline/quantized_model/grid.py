"""The integer grids of compressed-tensors: scales, zero points, codes and dequantized values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """How the codes of a weight are laid out.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input channels that share a scale; None: all of them.
        symmetric: the grid is centred on zero; otherwise each scale has a zero point.
        per_tensor: one scale for the whole weight (then `group_size` is None).
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    per_tensor: bool = False


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A Linear's weight on an integer grid: `(codes - zero_point) * scale` is the weight that runs.

    Attributes:
        codes: int8 (out, in), within [-2^(bits-1), 2^(bits-1) - 1].
        scale: (out, in / group_size), or (out, 1) per channel, or (1, 1) per tensor; in the model's dtype, in which
            it is stored.
        grid: bits, group size, symmetry.
        zero_point: int8, the shape of `scale`, within the range of the codes; None where the grid is symmetric.
    """

    codes: Tensor
    scale: Tensor
    grid: Grid
    zero_point: Tensor | None = None

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def group_size(self) -> int | None:
        return self.grid.group_size

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """The output channels [start, stop), to split the stacked members of a site.

        Raises:
            ValueError: a per-tensor scale, which belongs to all rows together.
        """
        if self.grid.per_tensor:
            raise ValueError("a weight with one scale cannot be split into rows; quantize each layer separately")
        zero = None if self.zero_point is None else self.zero_point[start:stop].contiguous()
        codes, scale = self.codes[start:stop].contiguous(), self.scale[start:stop].contiguous()
        return QuantizedWeight(codes, scale, self.grid, zero)

    def take(self, rows: Tensor) -> QuantizedWeight:
        """Some output channels, by their numbers (n,) int64; a scale per tensor stays theirs."""
        scale, zero = self.scale, self.zero_point
        if not self.grid.per_tensor:
            scale, zero = scale[rows], None if zero is None else zero[rows]
        return QuantizedWeight(self.codes[rows].contiguous(), scale.contiguous(), self.grid, zero)


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a signed width: (-8, 7) for 4 bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def scale_and_zero(low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover a range, as compressed-tensors' `calculate_qparams` computes them.

    Symmetric: absmax / ((2^bits - 1) / 2): +absmax itself lies half a step above the largest code and clips.
    Asymmetric: the range is widened to hold zero, (high - low) / (2^bits - 1), and zero falls on a code.
    A zero range, or a scale that rounds to zero in `dtype`, gets the dtype's epsilon, so that nothing divides by zero.

    Args:
        low, high: any shape, float.
        bits: width of a code.
        symmetric: centre the grid on zero.
        dtype: of the model, in which the scale is stored.

    Returns:
        scale (in `dtype`, positive) and zero point (float32 integers, 0 where symmetric), each the shape of `low`.
    """
    first, last = code_range(bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        scale = symmetric_scale(torch.maximum(-low, high), bits, dtype)
        return scale, torch.zeros_like(scale, dtype=torch.float32)
    scale = ((high - low) / (last - first)).to(dtype)
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
    zero = (first - low / scale.to(low.dtype)).round().clamp(first, last)
    return scale, zero.float()


def symmetric_scale(absmax: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Scale of a symmetric grid, absmax / ((2^bits - 1) / 2), rounded to the dtype in which it is stored.

    Args:
        absmax: any shape, float.
        bits: width of a code.
        dtype: of the model.

    Returns:
        The shape of `absmax`, in `dtype`, positive.
    """
    scale = (absmax / ((2**bits - 1) / 2)).to(dtype)
    return torch.where(scale == 0, torch.finfo(dtype).eps, scale)


def round_to_grid(values: Tensor, scale: Tensor, bits: int, zero_point: Tensor | float = 0.0) -> Tensor:
    """Nearest code, ties to even, clipped: round(values / scale + zero), float, broadcast over `scale`."""
    low, high = code_range(bits)
    return (values / scale + zero_point).round_().clamp_(low, high)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """The weight that the quantized model multiplies with: (out, in), in the scale's dtype, product rounded to it."""
    rows, columns = weight.codes.shape
    codes = weight.codes.view(rows, weight.scale.shape[1], -1).to(weight.scale.dtype)
    if weight.zero_point is not None:
        codes = codes - weight.zero_point.to(codes.dtype).unsqueeze(-1)
    return (codes * weight.scale.unsqueeze(-1)).view(rows, columns)
