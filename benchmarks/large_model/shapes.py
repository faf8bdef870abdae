"""Random models of the shapes that people deploy, written a decoder layer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

SPREAD = 0.02
"""Standard deviation of the weights."""
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama-8b": (
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "llama-1b": (
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-30b-a3b": (
        Qwen3MoeConfig,
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "max_position_embeddings": 8192,
        },
    ),
}


def write_model(shape: str, folder: Path, layers: int | None = None) -> int:
    """Write a random model in bfloat16, a file per decoder layer, and return its number of weights.

    Args:
        shape: a key of `SHAPES`.
        layers: number of decoder layers; None: the shape's own.
    """
    kind, values = SHAPES[shape]
    config = kind(**values | ({} if layers is None else {"num_hidden_layers": layers}), dtype="bfloat16")
    config.architectures = [kind.__name__.replace("Config", "ForCausalLM")]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    places, count = {}, 0
    for number, tensors in enumerate(_files(model)):
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        count += sum(tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def _files(model: Any) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file by name in the checkpoint."""
    generator = torch.Generator().manual_seed(0)
    state, config = model.state_dict(), model.config
    layers = sorted({int(name.split(".")[2]) for name in state if name.startswith("model.layers.")})
    for prefix in ("model.embed_tokens.", "lm_head.", "model.norm.", *(f"model.layers.{number}." for number in layers)):
        tensors: dict[str, Tensor] = {}
        for name, weight in state.items():
            tied = config.tie_word_embeddings and name == "lm_head.weight"
            if name.startswith(prefix) and not tied:
                for key, size in _stored(name, weight):
                    tensors[key] = _random(size, generator)
        if tensors:
            yield tensors


def _stored(name: str, weight: Tensor) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes under which a checkpoint holds a weight: experts one by one."""
    module, _, part = name.rpartition(".")
    if not module.endswith(".experts"):
        yield name, weight.shape
        return
    experts, rows, width = weight.shape
    for expert in range(experts):
        if part == "gate_up_proj":
            for half in ("gate_proj", "up_proj"):
                yield f"{module}.{expert}.{half}.weight", torch.Size((rows // 2, width))
        else:
            yield f"{module}.{expert}.{part}.weight", torch.Size((rows, width))


def _random(size: torch.Size, generator: torch.Generator) -> Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    # in pieces: in float32 an embedding would take four times what is written
    weight = torch.empty(size, dtype=torch.bfloat16)
    for rows in weight.split(4096):
        rows.copy_(torch.randn(rows.shape, generator=generator).mul_(SPREAD))
    return weight
