"""Modules that hold many weights but stay in full precision, so that a quantized model can name them.

Such a model is stored under the names of transformers' modules (`mlp.experts.gate_up_proj`), not of the original
checkpoint (one tensor per expert): transformers 5.23 loads the latter as compressed-tensors only if the experts are
packed, too (`CompressedTensorsDequantize`). Engines that know only the original names do not load the model.
"""

from __future__ import annotations

from torch import nn

from plumbline.base_model.experts import are_fused_experts
from plumbline.base_model.inputs import left_out


def experts_in_full_precision(model: nn.Module) -> dict[str, str]:
    """Modules with all experts of a layer in one tensor, which no scheme quantizes: name -> reason."""
    unknown = left_out(model, ())
    modules = {}
    for name, module in model.named_modules():
        if are_fused_experts(module) or "experts" in unknown.get(name, ""):
            weights = sum(weight.numel() for weight in module.parameters(recurse=False))
            modules[name] = (
                f"{type(module).__name__}: {weights} weights of experts in one tensor; only Linears are quantized"
            )
    return modules
