"""The result of quantization: a quantized Linear, and a model of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from plumbline.quantized_model.grid import QuantizedWeight


@dataclass(frozen=True, eq=False)
class Layer:
    """A quantized Linear and what there is to say about it.

    Attributes:
        weight: codes, scales and zero points.
        input_scale: static activation scale, shape (1,); None where activations are not quantized, or dynamically.
        group_size: the one used, which may be a divisor of the scheme's; None: per channel or per tensor.
        damping: GPTQ, AdaRound: share of the mean Hessian diagonal that was added.
        dead: GPTQ, AdaRound: input channels that the calibration set never used.
        fallback: why it was rounded to nearest although the scheme says otherwise; None: it was not.
        error: relative output error on the calibration set, tr(dW S dW^T) / tr(W S W^T), of the weight alone, against
            the base model's weight whatever was folded into it; None where there is no Hessian.
        input_zero_point: int8, shape (1,); None where the activations' grid is symmetric or there is none.
    """

    weight: QuantizedWeight
    input_scale: Tensor | None
    group_size: int | None
    damping: float | None = None
    dead: int = 0
    fallback: str | None = None
    error: float | None = None
    input_zero_point: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized model beside the base model that it was made from.

    Attributes:
        layers: by module name of a Linear, in the model's order.
        parameters: every other parameter that a transform changed (norm weights, biases), by its name in the state
            dict, in the model's dtype.
        notes: what else there is to say, JSON-able: facts of the transform, of the bits per layer, of propagation.
    """

    layers: dict[str, Layer]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
