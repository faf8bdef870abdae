"""Static activation scales from the stored range of a site."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assets.quantized_model.grid import round_to_grid, symmetric_scale


def activation_scale(minimum: float, maximum: float, bits: int, dtype: torch.dtype) -> Tensor:
    """Symmetric per-tensor scale that covers [minimum, maximum] and zero; q, k and v share a site, hence a scale.

    Args:
        minimum, maximum: extremes of the site's input over the calibration set.
        bits: width of a code.
        dtype: of the model.

    Returns:
        Shape (1,), in `dtype`.

    Raises:
        ValueError: the range is not finite.
    """
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        raise ValueError(f"the activations range from {minimum} to {maximum}; a static scale needs a finite range")
    absmax = max(abs(minimum), abs(maximum))
    return symmetric_scale(torch.tensor([absmax], dtype=torch.float64), bits, dtype)


def quantize_activation(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round activations to the static grid and back, all in x's dtype: what runs in front of a W8A8 Linear."""
    return round_to_grid(x, scale, bits) * scale
