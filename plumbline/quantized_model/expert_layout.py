"""How a checkpoint stores the experts of a layer: one by one, or all in one tensor.

transformers holds them in one tensor either way, and reverts that when it saves a model. `pieces_of_experts` reverts
tensors of row numbers, so that every name of the checkpoint shows which rows of which expert it holds, whatever the
order, the interleaving or the transposition.

transformers 5.23 reads compressed experts only where it merges single ones while loading
(`CompressedTensorsDequantize` runs before the merge), only as packed integers without zero points, and with one width
and group size for all of them (`get_experts_scheme`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from plumbline.base_model.experts import are_fused_experts, projections
from plumbline.base_model.inputs import are_unknown_experts, left_out
from plumbline.base_model.matrices import Matrix
from plumbline.base_model.parts import EXPERTS
from plumbline.quantized_model.params import SchemeParams


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A tensor of the checkpoint that holds some rows of an expert's matrix.

    Attributes:
        name: of the tensor without ".weight".
        matrix: name of the matrix, as in `base_model.matrices`.
        rows: (n,) int64, which rows (output channels) of the matrix it holds, in its order.
    """

    name: str
    matrix: str
    rows: Tensor


def pieces_of_experts(model: PreTrainedModel, owner: str) -> list[StoredPart]:
    """The tensors in which a checkpoint of this model stores the experts of the module `owner`.

    Returns:
        One piece per tensor; empty: the checkpoint stores all experts in one tensor.
    """
    module = model.get_submodule(owner)
    probes: dict[str, Tensor] = {}
    parts: list[str] = []
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() != 3:
            continue
        experts, rows = len(parameter), parameter.shape[2 if module.is_transposed else 1]
        numbers = (torch.arange(experts * rows) + len(parts) * 2**40).view(experts, rows, 1).expand(-1, -1, 2)
        probes[f"{owner}.{name}"] = (
            numbers.transpose(1, 2).contiguous() if module.is_transposed else numbers.contiguous()
        )
        parts.append(name)
    pieces = []
    for name, values in revert_weight_conversion(model, probes).items():
        if values.dim() != 2 or not name.endswith(".weight"):
            return []
        if not torch.equal(values[:, 0], values[:, 1]):
            return []
        part = parts[int(values[0, 0]) // 2**40]
        rows = model.get_parameter(f"{owner}.{part}").shape[2 if module.is_transposed else 1]
        numbers = values[:, 0] % 2**40
        expert = int(numbers[0]) // rows
        pieces.append(StoredPart(name.removesuffix(".weight"), f"{owner}.{expert}.{part}", numbers % rows))
    return pieces


def require_readable_experts(model: PreTrainedModel, matrices: Mapping[str, Matrix], scheme: SchemeParams) -> None:
    """Refuse a scheme whose experts transformers could not load, before any work.

    Args:
        matrices: what the scheme quantizes.

    Raises:
        ValueError: says why, and what works instead.
    """
    reasons = left_out(model, ())
    unknown = sorted(name for name in reasons if are_unknown_experts(model.get_submodule(name)))
    if unknown and scheme.experts != "full_precision":
        raise ValueError(
            f"{unknown[0]}: {reasons[unknown[0]]}, so they cannot be quantized; write experts: full_precision in the "
            "scheme, which leaves them as they are"
        )
    owners = sorted({matrix.owner for matrix in matrices.values() if matrix.expert is not None})
    if not owners:
        return
    kind = type(model.get_submodule(owners[0])).__name__
    instead = "write experts: full_precision in the scheme, which leaves them as they are"
    everything = {name for name, module in model.named_modules() if are_fused_experts(module)}
    parts = {part for name in everything for part in projections(name, model.get_submodule(name))}
    if not parts <= set(matrices):
        raise ValueError(
            f"{kind}: the scheme quantizes some experts and not others, and transformers reads either all of them "
            f"quantized or none; take the experts out of ignore, or {instead}"
        )
    if not pieces_of_experts(model, owners[0]):
        raise ValueError(
            f"{kind}: a checkpoint of {type(model).__name__} stores all experts of a layer in one tensor, and "
            f"transformers reads no quantized ones there; {instead} and quantizes the rest"
        )
    own = scheme.own.get(EXPERTS, scheme)
    if own.weight_type == "nvfp4" and scheme.loads_in != "vllm":
        raise ValueError(
            f"{kind} with weight_type: nvfp4: transformers drops the global scale of experts when it loads them, "
            "without a word (its issue 48371); write loads_in: vllm for a model that vLLM alone shall load, "
            f"weight_type: mxfp4 or fp8 for the experts, or {instead}"
        )
    if own.weight_type == "mxfp8":
        raise ValueError(
            f"{kind} with weight_type: mxfp8: transformers reads fp8 experts with scales per channel or tensor; "
            f"write weight_type: mxfp4 or fp8 for the experts, or {instead}"
        )
    if own.block_structure is not None:
        raise ValueError(
            f"{kind} with block_structure: transformers reads fp8 experts with scales per channel or tensor; "
            f"remove block_structure, or {instead}"
        )
    if not scheme.symmetric:
        raise ValueError(
            f"{kind} with symmetric: false: transformers drops the zero points of experts when it loads them; remove "
            f"symmetric, or {instead}"
        )
