"""The symmetric integer grid of compressed-tensors: scales, codes and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A Linear's weight on an integer grid: `codes * scale` is the weight that runs.

    Attributes:
        codes: int8 (out, in), within [-2^(bits-1), 2^(bits-1) - 1].
        scale: (out, in / group_size), or (out, 1) per channel; in the model's dtype, because that is what is stored.
        bits: width of a code.
        group_size: input channels that share a scale; None: all of them.
        zero_point: None; every scheme here is symmetric.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    group_size: int | None
    zero_point: None = None

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """The output channels [start, stop): the members of a site are solved stacked and taken apart again."""
        codes, scale = self.codes[start:stop].contiguous(), self.scale[start:stop].contiguous()
        return QuantizedWeight(codes, scale, self.bits, self.group_size)


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a signed width: (-8, 7) for 4 bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def symmetric_scale(absmax: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Scale of a symmetric grid, absmax / ((2^bits - 1) / 2), rounded to the dtype in which it is stored.

    This is compressed-tensors' `calculate_qparams`: +absmax itself lies half a step above the largest code and clips.
    A zero range, or one that rounds to zero in `dtype`, gets the dtype's epsilon, so that nothing divides by zero.

    Args:
        absmax: any shape, float.
        bits: width of a code.
        dtype: of the model.

    Returns:
        The shape of `absmax`, in `dtype`, positive.
    """
    scale = (absmax / ((2**bits - 1) / 2)).to(dtype)
    return torch.where(scale == 0, torch.finfo(dtype).eps, scale)


def round_to_grid(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest code, ties to even, clipped: round(values / scale), float, broadcast over `scale`."""
    low, high = code_range(bits)
    return (values / scale).round_().clamp_(low, high)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """The weight that the quantized model multiplies with: (out, in), in the scale's dtype, product rounded to it."""
    rows, columns = weight.codes.shape
    codes = weight.codes.view(rows, weight.scale.shape[1], -1).to(weight.scale.dtype)
    return (codes * weight.scale.unsqueeze(-1)).view(rows, columns)
