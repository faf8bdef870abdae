"""Simulation of the quantized model: computes what transformers computes from the exported folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import torch
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor, nn

from plumbline.base_model.as_quantized import set_quantized
from plumbline.base_model.matrices import Matrix, matrix_of, replaced
from plumbline.quantized_model.grid import dequantize
from plumbline.quantized_model.kv_cache import round_cache
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantization_config import activation_args
from plumbline.quantized_model.scheme import scheme_of

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def simulate(model: Model, quantized: Quantized, scheme: SchemeParams, shared: bool = False) -> Model:
    """A copy of the base model that multiplies with the dequantized weights and rounds the inputs of its Linears.

    The arithmetic is that of the default `from_pretrained` path (decompressed at the first forward pass, inputs rounded
    in the model's dtype), so the logits agree bit for bit.

    Args:
        model: the base model; not changed. The weights that are quantized may be on the meta device.
        quantized: from `quantize_model` of that model.
        scheme: of `quantized`; read for the activations.
        shared: the copy holds the base model's own tensors where they do not change.

    Raises:
        AttributeError: a name is no module or parameter of the model.
    """
    # The copy takes the new weights where the base model has its own, so that those are not copied first.
    weights: dict[int, nn.Parameter] = {}
    changed = replaced(model, ((name, dequantize(layer.weight)) for name, layer in quantized.layers.items()))
    for name, value in changed.items():
        original = model.get_parameter(name)
        weights[id(original)] = nn.Parameter(value, original.requires_grad)
    memo: dict[int, Any] = {}
    if shared:
        own = {id(model.get_parameter(name)) for name in quantized.parameters}
        memo = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers()) if id(tensor) not in own}
    simulated = copy.deepcopy(model, memo | weights)
    for name, value in quantized.parameters.items():
        simulated.get_parameter(name).copy_(value)
    if not quantized.dense:
        set_quantized(simulated)
    for name, layer in quantized.layers.items():
        _round_input(simulated, matrix_of(simulated, name), name, layer, scheme)
    round_cache(simulated, quantized.cache)
    return simulated


def put(module: nn.Module, name: str, layer: Layer, scheme: SchemeParams) -> None:
    """Make the matrix `name` of a module compute what the quantized one does, in place."""
    matrix = matrix_of(module, name)
    matrix.weight.copy_(dequantize(layer.weight))
    _round_input(module, matrix, name, layer, scheme)


def _round_input(model: nn.Module, matrix: Matrix, name: str, layer: Layer, scheme: SchemeParams) -> None:
    activations = scheme_of(name, matrix, scheme).activations
    if activations is not None:
        hook = rounding(activation_args(activations), layer)
        model.get_submodule(matrix.owner).register_forward_pre_hook(hook)


def rounding(args: QuantizationArgs, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A forward pre-hook that rounds the first argument of a Linear as compressed-tensors does, in the dtype of x.

    Args:
        args: of the activations; dynamic scales are computed per token, or per group of a token.
        layer: whose static scales are used.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        if not x.numel():  # an expert that no token reached
            return inputs
        scale, zero, global_scale = (
            None if tensor is None else tensor.to(x.device)
            for tensor in (layer.input_scale, layer.input_zero_point, layer.input_global_scale)
        )
        if args.dynamic:
            scale, zero = compute_dynamic_scales_and_zp(x, args, module, global_scale)
        return (fake_quantize(x, scale, zero, args, global_scale), *inputs[1:])

    return hook
