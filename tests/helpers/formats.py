"""Schemes of every floating-point format, and the numbers of those formats written out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.quantized_model.grid import Grid

Array = NDArray[np.float64]
TOKEN: dict[str, Any] = {"type": "fp8", "dynamic": True}
GROUPS: dict[str, Any] = {**TOKEN, "group_size": 128}
FORMATS: dict[str, dict[str, Any]] = {
    "fp8": {"weight_type": "fp8", "per_tensor": True, "activations": {"type": "fp8"}},
    "fp8-mse": {"weight_type": "fp8", "activations": {"type": "fp8", "range": "mse"}},
    "fp8-percentile": {"weight_type": "fp8", "activations": {"type": "fp8", "range": "percentile"}},
    "fp8-dynamic": {"weight_type": "fp8", "activations": TOKEN},
    "fp8-block": {"weight_type": "fp8", "block_structure": [128, 128], "activations": GROUPS},
    "fp8a16": {"weight_type": "fp8"},
    "nvfp4a16": {"weight_type": "nvfp4"},
    "nvfp4": {"weight_type": "nvfp4", "activations": {"type": "nvfp4"}},
    "mxfp4a16": {"weight_type": "mxfp4"},
    "mxfp4": {"weight_type": "mxfp4", "activations": {"type": "mxfp4"}},
    "mxfp4xfp8": {"weight_type": "mxfp4", "activations": GROUPS},
    "mxfp8a16": {"weight_type": "mxfp8"},
    "mxfp8": {"weight_type": "mxfp8", "activations": {"type": "mxfp8"}},
    "w4afp8": {"weight_bits": 4, "group_size": 128, "activations": TOKEN},
    "w4a8": {"weight_bits": 4, "group_size": 128, "activations": {"dynamic": True}},
    "mixed-formats": {
        "weight_type": "nvfp4",
        "activations": {"type": "nvfp4"},
        "overrides": {"attention": {"weight_type": "fp8", "activations": TOKEN}},
    },
}
GRIDS = {
    "fp8-tensor": Grid(8, per_tensor=True, type="float"),
    "fp8": Grid(8, type="float"),
    "fp8-block": Grid(8, type="float", block=(128, 128)),
    "nvfp4": Grid(4, 16, type="float", scale_format="e4m3"),
    "mxfp4": Grid(4, 32, type="float", scale_format="e8m0"),
    "mxfp8": Grid(8, 32, type="float", scale_format="e8m0"),
}


def numbers_of(exponent_bits: int, mantissa_bits: int, largest: float) -> Array:
    """All numbers of a floating-point format up to the largest, ascending, from their bits."""
    bias = 2 ** (exponent_bits - 1) - 1
    positive = [
        (m / 2**mantissa_bits + (e > 0)) * 2.0 ** (max(e, 1) - bias)
        for e in range(2**exponent_bits)
        for m in range(2**mantissa_bits)
    ]
    positive = [number for number in positive if number <= largest]
    return np.array(sorted({-number for number in positive} | set(positive)))


E4M3, E2M1 = numbers_of(4, 3, 448.0), numbers_of(2, 1, 6.0)


def nearest(x: NDArray[np.floating], numbers: Array) -> Array:
    """The nearest number of a set, beyond its ends the end; of two equally near ones that with the even code."""
    x = np.asarray(x, np.float64)
    above = np.clip(np.searchsorted(numbers, x), 1, len(numbers) - 1)
    low, high = numbers[above - 1], numbers[above]
    below, over = x - low, high - x
    even_below = (above - 1 - len(numbers) // 2) % 2 == 0
    return np.where((below < over) | ((below == over) & even_below), low, high)
