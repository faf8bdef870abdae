"""Small mixtures of experts, and the inputs of their experts computed without the project's own hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats

Sample = tuple[str, list[int]]
Array = NDArray[np.float64]
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BUILD: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, head_dim=8, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=3)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(  # with a shared expert
        Qwen2MoeConfig(
            **SIZES,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=28,
            num_experts=6,
            num_experts_per_tok=2,
        )
    ),
    "gpt_oss": lambda: GptOssForCausalLM(  # transposed and interleaved weights, biases, a gate of its own
        GptOssConfig(**SIZES, head_dim=8, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    ),
}


def make_mixture(kind: str, dtype: torch.dtype = torch.float32, implementation: str | None = None) -> PreTrainedModel:
    torch.manual_seed(3)
    model = BUILD[kind]()
    with torch.no_grad():
        for weight in model.parameters():  # GPT-OSS starts some weights uninitialised
            weight.copy_(torch.randn(weight.shape) * 0.3)
    if implementation is not None:
        model.set_experts_implementation(implementation)
    return model.to(dtype).eval()


def collected(model: PreTrainedModel, samples: list[Sample], **settings: Any) -> ActivationStats:
    return collect(model, samples, StatisticsParams(**settings), base_model_digest="0" * 64, fingerprint="f")


def inputs_of_experts(model: PreTrainedModel, samples: list[Sample]) -> dict[str, dict[str, tuple[Array, Array]]]:
    """By site and sample (float64 activations, positions), from what the experts' modules were called with."""
    found: dict[str, dict[str, tuple[Array, Array]]] = {}
    calls: list[tuple[str, Array, NDArray[np.int64]]] = []
    handles = [
        module.register_forward_hook(
            lambda _, args, __, name=name: calls.append((name, args[0].double().numpy(), args[1].numpy()))
        )
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    for sample_id, ids in samples:
        calls.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        for name, x, chosen in calls:
            experts: Any = model.get_submodule(name)
            for expert in range(6):
                at = np.array([token for token in range(len(ids)) if expert in chosen[token]], dtype=np.int64)
                if not len(at):
                    continue
                found.setdefault(f"{name}.{expert}.gate_up_proj", {})[sample_id] = (x[at], at)
                W = experts.gate_up_proj[expert].detach().double().numpy()
                if type(experts).__name__ == "GptOssExperts":
                    both = x[at] @ W + experts.gate_up_proj_bias[expert].detach().double().numpy()
                    gate, up = np.minimum(both[:, ::2], 7.0), np.clip(both[:, 1::2], -7.0, 7.0)
                    inner = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
                else:
                    gate, up = np.split(x[at] @ W.T, 2, axis=1)
                    inner = gate / (1 + np.exp(-gate)) * up
                found.setdefault(f"{name}.{expert}.down_proj", {})[sample_id] = (inner, at)
    for handle in handles:
        handle.remove()
    return found
