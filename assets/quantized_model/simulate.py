"""Our own simulation of the quantized model: what the exported folder must compute when transformers loads it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from assets.quantized_model.grid import QuantizedWeight, dequantize
from assets.quantized_model.minmax import quantize_activation

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def simulate(
    model: Model, weights: Mapping[str, QuantizedWeight], input_scales: Mapping[str, Tensor], activation_bits: int = 8
) -> Model:
    """A copy of the base model whose Linears multiply with the dequantized weights and round their inputs.

    The arithmetic is that of the default `from_pretrained` path (decompressed at the first forward pass, inputs rounded
    in the model's dtype), so the logits agree bit for bit.

    Args:
        model: the base model; not changed.
        weights: by module name of a Linear.
        input_scales: static activation scale by module name; empty: activations are not rounded.
        activation_bits: width of the activations' codes.

    Raises:
        AttributeError: a name is no module of the model.
    """
    simulated = copy.deepcopy(model)
    for name, weight in weights.items():
        linear = simulated.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # only those are quantized
        linear.weight.copy_(dequantize(weight))
    for name, scale in input_scales.items():
        simulated.get_submodule(name).register_forward_pre_hook(_rounding(scale, activation_bits))
    return simulated


def _rounding(scale: Tensor, bits: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (quantize_activation(args[0], scale.to(args[0].device), bits), *args[1:])

    return hook
