"""Decoder layers with large experts, of which some are in memory at a time while a layer is quantized."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor

from plumbline.base_model.experts import projections
from plumbline.base_model.grouped_products import GroupedProducts
from plumbline.base_model.large_mixture import LargeMixture, large_mixture
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.grid import dequantize
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.params import SchemeParams


def solved_apart(
    streamed: StreamedModel, layer: str, scheme: SchemeParams, matrices: Container[str]
) -> LargeMixture | None:
    """The large mixture of a decoder layer, if its experts are solved some at a time: no transform, bits per layer or
    propagation needs them together, and the scheme leaves none of them.

    Args:
        matrices: names of those that the scheme quantizes.
    """
    if scheme.transform is not None or scheme.mixed is not None or scheme.propagate == "quantized":
        return None
    mixture = large_mixture(streamed, layer)
    if mixture is None or not all(name in matrices for name in projections(mixture.name, mixture.module)):
        return None
    return mixture


def run_quantized(mixture: LargeMixture, layers: Mapping[str, Layer], run: Callable[[], Tensor]) -> Tensor:
    """What a pass through a decoder layer computes with quantized experts, of which some are dequantized at a time.

    Args:
        layers: the experts' matrices.
        run: the pass, in a model without them.
    """
    with GroupedProducts() as products:
        for matrix in mixture.matrices:
            products.until(0, run)
            for experts in mixture.groups(mixture.experts):
                products.multiply(experts, _dequantized(mixture, layers, matrix, experts))
            products.complete()
        with products.known(0):
            return run()


def _dequantized(mixture: LargeMixture, layers: Mapping[str, Layer], matrix: str, experts: range) -> Tensor:
    """(experts, in, out), laid out in memory as the module has them."""
    parameter = mixture.module.get_parameter(matrix)
    weights = torch.empty((len(experts), *parameter.shape[1:]), dtype=parameter.dtype, device="cpu")
    for place, expert in zip(weights, experts, strict=True):
        weight = dequantize(layers[f"{mixture.name}.{expert}.{matrix}"].weight)
        place.copy_(weight.T if mixture.module.is_transposed else weight)
    return mixture.in_out(weights)
