"""The base model with the modules and the code paths that transformers gives a quantized one.

transformers replaces some experts that one tensor holds by single ones while it loads a compressed-tensors checkpoint
(`MODULES_TO_PATCH_FOR_QUANTIZATION`: Llama 4), and the code of some models calls a Linear only if the model is
quantized, and reads its weight otherwise (Jamba's dt_proj). Statistics, simulation and the exported model must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION


def is_replaced(module: nn.Module) -> bool:
    """Whether transformers holds the experts of this module one by one in a quantized model."""
    return type(module).__name__ in MODULES_TO_PATCH_FOR_QUANTIZATION


@torch.no_grad()
def with_sequential_experts(model: PreTrainedModel) -> PreTrainedModel:
    """The model with such experts one by one, as transformers loads a quantized one; changed in place.

    Raises:
        ValueError: experts of a form that is not known here.
    """
    for name, module in replaced_experts(model).items():
        with torch.device("meta"):
            entry = MODULES_TO_PATCH_FOR_QUANTIZATION[type(module).__name__]
            experts: nn.Module = entry["module_name"](model.config.get_text_config())
        experts.train(module.training)
        set_experts(name, module, experts)
        put_module(model, name, experts)
    return model


def replaced_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of such experts in a model that is not quantized, by name."""
    return {name: module for name, module in model.named_modules() if is_replaced(module)}


@torch.no_grad()
def set_experts(name: str, module: nn.Module, experts: nn.Module) -> None:
    """Give each of `experts` its weights from `module`, the module `name` that holds them in one tensor.

    Raises:
        ValueError: experts of a form that is not known here.
    """
    for number, expert in experts.named_children():
        weights = _of_expert(module, int(number))
        if set(weights) != {key for key, _ in expert.named_parameters()}:
            raise ValueError(f"{name}: the experts of {type(module).__name__} have a form that is not known here")
        for key, value in weights.items():
            expert.get_submodule(key.rpartition(".")[0])._parameters["weight"] = nn.Parameter(value, False)


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of that name."""
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


def _of_expert(module: nn.Module, number: int) -> dict[str, Tensor]:
    """The weights (out, in) of an expert, by parameter name, from tensors (experts, in, out)."""
    gate, up = module.get_parameter("gate_up_proj")[number].chunk(2, dim=-1)
    down = module.get_parameter("down_proj")[number]
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    return {f"{key}.weight": value.T.contiguous() for key, value in parts.items()}


def holds_sequential_experts(module: nn.Module) -> bool:
    """Whether a module holds experts one by one that a base model's checkpoint holds in one tensor."""
    return any(isinstance(module, entry["module_name"]) for entry in MODULES_TO_PATCH_FOR_QUANTIZATION.values())


def set_quantized(model: nn.Module) -> None:
    """Mark a model as transformers marks a quantized one, which the code of some models asks for."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = True


@contextmanager
def called_as_quantized(model: nn.Module) -> Iterator[None]:
    """Within the context, the model runs the code of a quantized one, so that every Linear is called."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [hasattr(config, "_is_quantized") for config in configs]
    set_quantized(model)
    try:
        yield
    finally:
        for config, was in zip(configs, before, strict=True):
            if not was:
                del config._is_quantized
