"""The result of quantization: a quantized Linear and a quantized model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from plumbline.quantized_model.grid import QuantizedWeight
from plumbline.quantized_model.kv_cache import CacheScales


@dataclass(frozen=True, eq=False)
class Layer:
    """A quantized Linear and how it was quantized.

    Attributes:
        weight: codes, scales and zero points.
        input_scale: static activation scale, shape (1,); None where activations are not quantized, or dynamically.
        group_size: the group size used, possibly smaller than the scheme's; None: per channel or per tensor.
        damping: GPTQ, AdaRound: share of the mean Hessian diagonal that was added.
        dead: GPTQ, AdaRound: number of input channels that the calibration set never used.
        fallback: reason why it was rounded to nearest instead of by the scheme's method; None if it was not.
        error: relative output error on the calibration set, tr(dW S dW^T) / tr(W S W^T), of the weight alone, against
            the base model's weight before any folding; None without a Hessian.
        input_zero_point: int8, shape (1,); None where the activations' grid is symmetric or there is none.
        input_global_scale: float32, shape (1,), of NVFP4 activations, by which their E4M3 scales are divided.
    """

    weight: QuantizedWeight
    input_scale: Tensor | None
    group_size: int | None
    damping: float | None = None
    dead: int = 0
    fallback: str | None = None
    error: float | None = None
    input_zero_point: Tensor | None = None
    input_global_scale: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Quantized:
    """The quantized layers and changed parameters of a base model.

    Attributes:
        layers: by module name of a Linear, in the model's order.
        parameters: every other parameter that a transform changed (norm weights, biases), by its name in the state
            dict, in the model's dtype.
        notes: JSON-able facts about the transform, the bits per layer and the propagation.
        dense: transformers loads the model with every weight decompressed as it is read (`loading.loads_dense`).
        left: matrix that the scheme selects and the model does not allow -> reason why it stays in full precision.
        rows: Linear -> divisors (out,) of its output channels, which a transform folded in.
        cache: attention module -> scales of the keys and values that it caches; empty: they are not quantized.
    """

    layers: dict[str, Layer]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    dense: bool = False
    left: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[str, CacheScales] = field(default_factory=dict)
