"""The weight matrices of a model by name: of a Linear, or of one expert in a tensor that holds all of a layer.

What is multiplied with activations is a matrix (out, in), wherever the model stores it. The name of a Linear's is its
module name; that of an expert is `<experts>.<number>.gate_up_proj` or `.down_proj`, as in the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from plumbline.base_model.experts import are_fused_experts, projections


class WeightMatrix(Protocol):
    """What quantization reads of a matrix: a `Matrix`, or a Linear."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight (out, in) that a model multiplies activations with.

    Attributes:
        owner: module name of the module whose parameter it is, or is part of.
        part: name of that parameter.
        parameter: the whole parameter.
        expert: its index in a parameter (experts, ...); None: the parameter is the matrix.
        transposed: the parameter stores (in, out).
    """

    owner: str
    part: str
    parameter: Tensor
    expert: int | None = None
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """A view (out, in) without gradient."""
        weight = self.parameter.detach()
        weight = weight if self.expert is None else weight[self.expert]
        return weight.T if self.transposed else weight

    @property
    def out_features(self) -> int:
        return int(self.parameter.shape[-1 if self.transposed else -2])

    @property
    def in_features(self) -> int:
        return int(self.parameter.shape[-2 if self.transposed else -1])

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


def is_slice(matrix: WeightMatrix) -> bool:
    """Whether a matrix is one expert's slice of a tensor that holds all experts of a layer."""
    return isinstance(matrix, Matrix) and matrix.expert is not None


def matrices(model: nn.Module) -> dict[str, Matrix]:
    """Every matrix of a model that a scheme can quantize, by name, in the order of its modules."""
    found: dict[str, Matrix] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = Matrix(name, "weight", module.weight)
        elif are_fused_experts(module):
            transposed = bool(module.is_transposed)
            for matrix in projections(name, module):
                _, number, part = matrix.rsplit(".", 2)
                found[matrix] = Matrix(name, part, module.get_parameter(part), int(number), transposed)
    return found


def matrix_of(model: nn.Module, name: str) -> Matrix:
    """The matrix of that name, as in `matrices`.

    Raises:
        AttributeError: the model has none.
    """
    owner, _, last = name.rpartition(".")
    experts, _, number = owner.rpartition(".")
    if number.isdigit():
        try:
            module = model.get_submodule(experts)
        except AttributeError:
            module = None
        if module is not None and are_fused_experts(module):
            return Matrix(experts, last, module.get_parameter(last), int(number), bool(module.is_transposed))
    return Matrix(name, "weight", model.get_submodule(name).get_parameter("weight"))


def holder(model: nn.Module, name: str) -> nn.Module:
    """The module that multiplies with a matrix: a Linear, or the module of all experts."""
    return model.get_submodule(matrix_of(model, name).owner)


@torch.no_grad()
def replaced(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters that hold these weights, by their names in the state dict, as new tensors; the model is unchanged.

    Args:
        weights: names of matrices, and what (out, in) takes their places; one is in memory at a time. A parameter on
            the meta device is replaced in full.
    """
    parameters: dict[str, Tensor] = {}
    for name, weight in weights:
        matrix = matrix_of(model, name)
        key = f"{matrix.owner}.{matrix.part}"
        if matrix.expert is None:
            parameters[key] = weight.to(matrix.parameter.dtype)
            continue
        if key not in parameters:
            whole = matrix.parameter.detach()
            parameters[key] = torch.empty_like(whole, device=weight.device) if whole.is_meta else whole.clone()
        parameters[key][matrix.expert].copy_(weight.T if matrix.transposed else weight)
    return parameters
