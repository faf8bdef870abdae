"""The grids of compressed-tensors: what numbers codes stand for, and how weights share their scales."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from plumbline.quantized_model.numbers import E2M1, E4M3, Numbers, integers

ScaleFormat = Literal["model", "e4m3", "e8m0"]
SCALE_FORMATS: dict[str, ScaleFormat] = {"nvfp4": "e4m3", "mxfp4": "e8m0", "mxfp8": "e8m0"}
"""The format of scales by the type of weights or activations; of others: the model's dtype."""
E4M3_EPSILON = 0.125
"""Stored instead of an E4M3 scale that rounds to zero, as in compressed-tensors."""
GLOBAL_RANGE = E4M3.largest * E2M1.largest
"""NVFP4: a global scale maps the largest magnitude of a tensor to this product."""


@dataclass(frozen=True)
class Grid:
    """How the codes of a weight are laid out.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input channels that share a scale; None: all of them.
        symmetric: the grid is centred on zero; otherwise each scale has a zero point.
        per_tensor: one scale for the whole weight (then `group_size` is None).
        type: codes stand for integers, or for floating-point numbers: E4M3 with 8 bits, E2M1 with 4.
        scale_format: the scale is stored in the model's dtype; as E4M3 number, relative to a global scale of the whole
            weight (NVFP4); or as power of two (MX formats).
        block: (rows, columns) that share a scale (then `group_size` is None); those at the edges may be smaller.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    per_tensor: bool = False
    type: Literal["int", "float"] = "int"
    scale_format: ScaleFormat = "model"
    block: tuple[int, int] | None = None

    @property
    def numbers(self) -> Numbers:
        """What the codes stand for."""
        if self.type == "int":
            return integers(self.bits)
        return E4M3 if self.bits == 8 else E2M1

    @property
    def is_split_by_rows(self) -> bool:
        """Whether rows share no scale."""
        return not self.per_tensor and self.block is None

    @property
    def is_stacked(self) -> bool:
        """Whether the members of a site are quantized as one matrix.

        Engines merge them (q, k, v; gate, up). Under one FP8 scale per tensor they would round them again to the
        largest of their scales, so the members share one.
        """
        return self.is_split_by_rows or (self.per_tensor and self.type == "float")

    @property
    def is_two_level(self) -> bool:
        """Whether scales are relative to a global scale."""
        return self.scale_format == "e4m3"

    def width_of_group(self, columns: int) -> int:
        """Consecutive input channels of a row that share a scale."""
        return self.group_size or (columns if self.block is None else self.block[1])


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A Linear's weight on a grid: `(number of the code - zero_point) * multiplier` is the weight that runs.

    Attributes:
        codes: int8 (out, in), see plumbline/quantized_model/numbers.py.
        scale: (out, in / group_size), or (out, 1) per channel, (1, 1) per tensor, (blocks of rows, blocks of columns);
            in the dtype in which it is computed with: the model's, or float32 for an E4M3 number or a power of two.
        grid: numbers, groups, symmetry.
        zero_point: int8, the shape of `scale`, within the range of the codes; None where the grid is symmetric.
        global_scale: float32 (1,), by which E4M3 scales are divided; None: there is none.
    """

    codes: Tensor
    scale: Tensor
    grid: Grid
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def group_size(self) -> int | None:
        return self.grid.group_size

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """The output channels [start, stop), to split the stacked members of a site; a scale per tensor stays theirs.

        Raises:
            ValueError: the members are not stacked.
        """
        if not self.grid.is_stacked:
            raise ValueError("a weight whose rows share a scale cannot be split; quantize each layer separately")
        if self.grid.per_tensor:
            return replace(self, codes=self.codes[start:stop].contiguous())
        zero = None if self.zero_point is None else self.zero_point[start:stop].contiguous()
        codes, scale = self.codes[start:stop].contiguous(), self.scale[start:stop].contiguous()
        return QuantizedWeight(codes, scale, self.grid, zero, self.global_scale)

    def take(self, rows: Tensor) -> QuantizedWeight:
        """Some output channels, by their numbers (n,) int64; a scale per tensor stays theirs.

        Raises:
            ValueError: blocks of rows share a scale.
        """
        scale, zero = self.scale, self.zero_point
        if self.grid.block is not None:
            raise ValueError("a weight whose blocks of rows share a scale cannot be split")
        if not self.grid.per_tensor:
            scale, zero = scale[rows], None if zero is None else zero[rows]
        return QuantizedWeight(self.codes[rows].contiguous(), scale.contiguous(), self.grid, zero, self.global_scale)


def scale_dtype(grid: Grid, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which scales of a grid are computed with, in a model of `dtype`."""
    return dtype if grid.scale_format == "model" else torch.float32


def running_dtype(grid: Grid, dtype: torch.dtype) -> torch.dtype:
    """The dtype to which the product of number and scale is rounded in a model of `dtype`.

    compressed-tensors 0.20 decompresses FP4 and MX weights to bfloat16, whatever the model's dtype.
    """
    return dtype if grid.scale_format == "model" else torch.bfloat16


def global_scale_of(weight: Tensor) -> Tensor:
    """The global scale (1,) float32 of an NVFP4 tensor, as compressed-tensors' `generate_gparam`: 2688 / absmax.

    1 where the weight is zero or so small that the quotient is infinite.
    """
    absmax = weight.abs().amax().to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.nan_to_num(GLOBAL_RANGE / absmax, nan=1.0, posinf=1.0).reshape(1)


def multiplier(scale: Tensor, global_scale: Tensor | None) -> Tensor:
    """What the number of a code is multiplied with: the scale, divided by the global scale if there is one."""
    return scale if global_scale is None else scale / global_scale.to(scale.device)


def scale_and_zero(
    low: Tensor, high: Tensor, grid: Grid, dtype: torch.dtype, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover a range, as compressed-tensors' `calculate_qparams` computes them.

    Symmetric integers: absmax / ((2^bits - 1) / 2): +absmax itself lies half a step above the largest code and clips.
    Asymmetric: the range is widened to hold zero, (high - low) / (2^bits - 1), and zero falls on a code.
    Floating-point numbers: absmax is mapped to the largest number, before the scale is rounded to its format.
    A zero range, or a scale that rounds to zero, gets the epsilon of the scale's format, so that nothing divides by
    zero.

    Args:
        low, high: any shape, float.
        grid: numbers, symmetry, format of the scale.
        dtype: of the model.
        global_scale: of the weight (1,) float32, where the scale's format is E4M3.

    Returns:
        scale (in `scale_dtype`, positive) and zero point (float32 integers, 0 where symmetric), each the shape of
        `low`.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if grid.symmetric:
        scale = symmetric_scale(torch.maximum(-low, high), grid, dtype, global_scale)
        return scale, torch.zeros_like(scale, dtype=torch.float32)
    first, last = grid.numbers.first, grid.numbers.last
    scale = ((high - low) / (last - first)).to(dtype)
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
    zero = (first - low / scale.to(low.dtype)).round().clamp(first, last)
    return scale, zero.float()


def symmetric_scale(absmax: Tensor, grid: Grid, dtype: torch.dtype, global_scale: Tensor | None = None) -> Tensor:
    """The scale of a symmetric grid, rounded to the format in which it is stored; see `scale_and_zero`."""
    if grid.scale_format == "e8m0":
        return power_of_two(absmax.to(torch.float32), grid.numbers)
    top = (2**grid.bits - 1) / 2 if grid.type == "int" else grid.numbers.largest
    if grid.scale_format == "e4m3":
        assert global_scale is not None
        scale = global_scale.to(absmax.device) * (absmax.to(torch.float32) / top)
        scale = scale.clamp(max=E4M3.largest).to(torch.float8_e4m3fn).to(torch.float32)
        return torch.where(scale == 0, E4M3_EPSILON, scale)
    scale = (absmax / top).to(dtype)
    return torch.where(scale == 0, torch.finfo(dtype).eps, scale)


def power_of_two(absmax: Tensor, numbers: Numbers) -> Tensor:
    """The shared scale of an MX group, 2^(floor(log2 absmax) - exponent of the largest number), float32.

    OCP Microscaling specification 1.0, section 6.3, with absmax rounded up to the next power of two from 1.75 of the
    one below on, as compressed-tensors does. E8M0 reaches from 2^-127 to 2^127.

    Args:
        absmax: any shape, float32.
    """
    mantissa, exponent = torch.frexp(absmax)  # absmax = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = exponent - 1 + (mantissa >= 0.875) - (8 if numbers is E4M3 else 2)
    exponent = torch.where(absmax == 0, -127, exponent.clamp(-127, 127))
    return torch.ldexp(torch.ones_like(absmax), exponent)


def round_to_grid(values: Tensor, scale: Tensor, grid: Grid, zero_point: Tensor | float = 0.0) -> Tensor:
    """The nearest code, ties to even, clipped: of values / scale + zero; float, broadcast over `scale`.

    Args:
        scale: the `multiplier`.
    """
    if grid.type == "int":
        return (values / scale + zero_point).round_().clamp_(grid.numbers.first, grid.numbers.last)
    return grid.numbers.nearest(values / scale)


def per_row(shared: Tensor, grid: Grid, rows: int) -> Tensor:
    """Scales or zero points of every row: (rows, groups), from one per tensor, block or row."""
    if grid.block is not None:
        return shared.repeat_interleave(grid.block[0], dim=0)[:rows]
    return shared.expand(rows, -1)


def running_weight(codes: Tensor, s: Tensor, zero: Tensor | None, grid: Grid, dtype: torch.dtype) -> Tensor:
    """What the quantized model multiplies with: (number - zero) * s, rounded to the dtype of s, then to `dtype`.

    Args:
        codes: (rows, columns).
        s: multiplier (rows, groups).
        zero: of the shape of s, or None.
        dtype: see `running_dtype`.
    """
    rows, columns = codes.shape
    numbers = grid.numbers.values(codes.to(s.dtype))
    if grid.block is not None:
        return (numbers * s.repeat_interleave(grid.block[1], dim=1)[:, :columns]).to(dtype)
    numbers = numbers.view(rows, s.shape[1], -1)
    if zero is not None:
        numbers = numbers - zero.to(s.dtype).unsqueeze(-1)
    return (numbers * s.unsqueeze(-1)).view(rows, columns).to(dtype)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """The weight that the quantized model multiplies with: (out, in).

    In the scale's dtype, product rounded to it; FP4 and MX weights in bfloat16.
    """
    rows, grid = len(weight.codes), weight.grid
    s = per_row(multiplier(weight.scale, weight.global_scale), grid, rows)
    zero = None if weight.zero_point is None else per_row(weight.zero_point, grid, rows)
    return running_weight(weight.codes, s, zero, grid, running_dtype(grid, weight.scale.dtype))
