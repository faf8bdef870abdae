"""The names that llama.cpp gives the weights of a model, by gguf's own table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plumbline.distribution import install_command

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Class of transformers -> architecture of llama.cpp, for those whose conversion (llama.cpp, convert_hf_to_gguf.py)
leaves the input channels of every weight where they are: what it reorders are output rows."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """llama.cpp's name of the architecture that a config.json describes.

    Raises:
        ValueError: none of `ARCHITECTURES`, or mixture of experts, whose weights llama.cpp merges.
    """
    named = config.get("architectures") or ["(none named)"]
    found = [ARCHITECTURES[name] for name in named if name in ARCHITECTURES]
    if not found:
        raise ValueError(
            f"config.json: architecture {', '.join(named)}; an imatrix is written for {', '.join(ARCHITECTURES)}, "
            "of which it is known that converting to GGUF keeps input channels in their order. For another, run "
            "llama-imatrix on the set's texts"
        )
    return found[0]


def llama_cpp_names(layers: Iterable[str], architecture: str, blocks: int) -> dict[str, str]:
    """Module name of each Linear -> name of its weight in llama.cpp, such as blk.0.attn_q.weight.

    Args:
        blocks: decoder layers of the model.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: a layer that gguf's table does not have: an imatrix that leaves it out would hide that.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"an imatrix needs the package gguf, an extra: {install_command('gguf')}") from error
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, blocks)
    names = {layer: table.get_name(f"{layer}.weight", try_suffixes=(".weight",)) for layer in layers}
    strange = sorted(layer for layer, name in names.items() if name is None)
    if strange:
        raise ValueError(
            f"gguf has no name for {strange[0]} in architecture {architecture} ({len(strange)} such layers): add it to "
            "statistics.ignore in params.yaml, collect again, and llama-quantize will treat it as unweighted"
        )
    return names
