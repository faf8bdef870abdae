"""The names that llama.cpp gives the weights of a model, by gguf's own table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plumbline.distribution import install_command

ARCHITECTURES = {
    "GPT2LMHeadModel": "gpt2",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "GemmaForCausalLM": "gemma",
    "GraniteForCausalLM": "granite",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Olmo2ForCausalLM": "olmo2",
    "OlmoeForCausalLM": "olmoe",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "SmolLM3ForCausalLM": "smollm3",
    "Starcoder2ForCausalLM": "starcoder2",
}
"""Class of transformers -> architecture of llama.cpp, for classes whose conversion (llama.cpp, convert_hf_to_gguf.py)
keeps the order of all input channels (it reorders output rows, and transposes GPT-2's Conv1D weights)."""
EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<part>\w+)")
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Weight of transformers' fused experts -> the weights that a GGUF file has in its place; both read the same input."""
BLOCKS = ("num_hidden_layers", "n_layer")
"""Keys of config.json for the number of decoder layers."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """llama.cpp's name of the architecture that a config.json describes.

    Raises:
        ValueError: not one of `ARCHITECTURES`.
    """
    classes = config.get("architectures") or ["(none named)"]
    architectures = [ARCHITECTURES[name] for name in classes if name in ARCHITECTURES]
    if not architectures:
        raise ValueError(
            f"config.json: architecture {', '.join(classes)}; an imatrix is written for {', '.join(ARCHITECTURES)}, "
            "whose conversion to GGUF is known to keep the order of input channels. For another, run llama-imatrix on "
            "the set's texts"
        )
    return architectures[0]


def blocks_of(config: Mapping[str, Any]) -> int:
    """Number of decoder layers of the model that a config.json describes.

    Raises:
        ValueError: it does not say.
    """
    for key in BLOCKS:
        if key in config:
            return int(config[key])
    raise ValueError(f"config.json: none of {', '.join(BLOCKS)}, so the decoder layers have no names in llama.cpp")


@dataclass(frozen=True)
class Place:
    """Where llama.cpp has the weight of a layer.

    Attributes:
        weight: name of its tensor, such as blk.0.attn_q.weight or blk.0.ffn_up_exps.weight.
        expert: index in a tensor that holds all experts of a block; None: the tensor is the weight.
    """

    weight: str
    expert: int | None = None


def llama_cpp_places(layers: Iterable[str], architecture: str, blocks: int) -> dict[str, tuple[Place, ...]]:
    """Name of each layer -> its places in llama.cpp: one, or two for a fused weight of an expert.

    Args:
        layers: module names of Linears or Conv1Ds, and names of experts' weights as the statistics have them.
        blocks: number of decoder layers.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: gguf's table has no name for a layer.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"an imatrix needs the package gguf, an extra: {install_command('gguf')}") from error
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, blocks)
    places, unnamed = {}, []
    for layer in layers:
        modules, expert = _modules(layer)
        names = [table.get_name(f"{module}.weight", try_suffixes=(".weight",)) for module in modules]
        if None in names:
            unnamed.append(layer)
        places[layer] = tuple(Place(str(name), expert) for name in names)
    if unnamed:
        raise ValueError(
            f"gguf has no name for {min(unnamed)} in architecture {architecture} ({len(unnamed)} such layers): add it "
            "to statistics.ignore in params.yaml, collect again, and llama-quantize will treat it as unweighted"
        )
    return places


def _modules(layer: str) -> tuple[tuple[str, ...], int | None]:
    """The modules that gguf's table knows a layer by, and the number of the expert."""
    match = EXPERT.fullmatch(layer)
    if match is None:
        return (layer,), None
    parts = FUSED.get(match["part"], (match["part"],))
    return tuple(f"{match['experts']}.{part}" for part in parts), int(match["number"])
