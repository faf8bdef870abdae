"""The names that llama.cpp gives the weights of a model, by gguf's own table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plumbline.distribution import install_command

ARCHITECTURES = {
    "GPT2LMHeadModel": "gpt2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Class of transformers -> architecture of llama.cpp, for classes whose conversion (llama.cpp, convert_hf_to_gguf.py)
keeps the order of all input channels (it reorders output rows, and transposes GPT-2's Conv1D weights)."""
BLOCKS = ("num_hidden_layers", "n_layer")
"""Keys of config.json for the number of decoder layers."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """llama.cpp's name of the architecture that a config.json describes.

    Raises:
        ValueError: not one of `ARCHITECTURES` (mixtures of experts are not: llama.cpp merges their weights).
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


def llama_cpp_names(layers: Iterable[str], architecture: str, blocks: int) -> dict[str, str]:
    """Module name of each Linear or Conv1D -> name of its weight in llama.cpp, such as blk.0.attn_q.weight.

    Args:
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
    names = {layer: table.get_name(f"{layer}.weight", try_suffixes=(".weight",)) for layer in layers}
    unnamed = sorted(layer for layer, name in names.items() if name is None)
    if unnamed:
        raise ValueError(
            f"gguf has no name for {unnamed[0]} in architecture {architecture} ({len(unnamed)} such layers): add it to "
            "statistics.ignore in params.yaml, collect again, and llama-quantize will treat it as unweighted"
        )
    return names
