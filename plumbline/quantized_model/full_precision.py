"""What a quantized model keeps in full precision although it holds most of a model's weights: named, not silent.

Such a model is stored under the names of transformers' modules (`mlp.experts.gate_up_proj`), not of the original
checkpoint (one tensor per expert): from the latter transformers 5.23 builds a compressed-tensors model only if the
experts are packed, too (`CompressedTensorsDequantize`). Engines that know the original names alone do not load it.
"""

from __future__ import annotations

from torch import nn

from plumbline.base_model.experts import are_fused_experts
from plumbline.base_model.inputs import left_out


def experts_in_full_precision(model: nn.Module) -> dict[str, str]:
    """Modules that hold all experts of a layer in one tensor, which no scheme quantizes here, and why."""
    unknown = left_out(model, ())
    found = {}
    for name, module in model.named_modules():
        if are_fused_experts(module) or "experts" in unknown.get(name, ""):
            weights = sum(weight.numel() for weight in module.parameters(recurse=False))
            found[name] = (
                f"{type(module).__name__}: {weights} weights of experts in one tensor; only Linears are quantized"
            )
    return found
