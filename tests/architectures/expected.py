"""What is expected of every architecture under every scheme: equality, unless it is named here."""

from __future__ import annotations

from collections.abc import Mapping

from tests.architectures.cells import SCHEMES, Cell

LEAST_SHARE = 0.99
"""Of the weights that can be quantized: a scale per 32 weights leaves none of them out, a small matrix may be."""
LAYERWISE = "layerwise"
FROM_PACKED = ("w4-rtn", "w4-gptq", "w4-awq")
"""Schemes whose weights transformers unpacks at the first forward pass."""
STATIC = ("w8a8-static", "w8a8-smooth")

REFUSED: dict[str, dict[tuple[str, ...], str]] = {
    "gpt2": {tuple(SCHEMES): "transformers' Conv1D, which compressed-tensors does not store"},
    "gemma3n-text": {(LAYERWISE,): "is called with a KVSharingDict"},
    "gemma4-moe-text": {(LAYERWISE,): "is called with a KVSharingDict"},
    "gemma4-text": {(LAYERWISE,): "does not read what model.layers.1 returned"},
    "gemma4": {(LAYERWISE,): "cannot be run layer by layer"},
}
"""Architecture -> schemes -> part of the reason."""

EXPERTS_LEFT = "experts in one tensor stay in full precision"
FEW_CHANNELS = "a gate of few output channels stops zero points for the whole model"
READ_DIRECTLY = "the model reads a Linear's weight itself, before transformers has unpacked it"
NOT_CALLED = "the model multiplies with a Linear's weight without calling it, so its input is not seen"
NOT_LOADED = "no causal LM of transformers: the folder does not load"
TOWER_LOST = "loaded as the text model alone: the tower for images is lost"
TOWER_UNREACHED = "no token reaches the tower for images, which is not left out"

_MIXTURES = (
    "mixtral", "qwen3-moe", "qwen3-moe-tied", "qwen3-moe-float16", "qwen3-moe-sharded", "deepseek-v2", "deepseek-v3",
    "glm4-moe", "dots1", "olmoe", "granite-moe", "granite-moe-shared", "gpt-oss", "ernie4.5-moe", "minimax-m2",
    "flex-olmo", "solar-open", "nemotron-h", "granite-hybrid", "lfm2-moe", "minimax", "qwen2-moe", "hunyuan-moe",
    "jetmoe", "afmoe", "phi-moe", "jamba", "llama4-text", "qwen3-next", "qwen3.5-moe-text", "deepseek-v3.2",
    "glm4-moe-lite", "exaone-moe", "mimo-v2-flash", "cohere2-moe", "longcat-flash", "gemma4-moe-text", "kimi-linear",
)  # fmt: skip
_NOT_LOADED = (
    "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "glm4v-moe", "mistral3", "llava", "llava-onevision",
    "internvl", "smolvlm", "paligemma", "idefics3",
)  # fmt: skip
KNOWN_GAPS: dict[str, dict[tuple[str, ...], str]] = {
    **{name: {tuple(SCHEMES): EXPERTS_LEFT} for name in _MIXTURES},
    **{name: {(LAYERWISE, *SCHEMES): NOT_LOADED} for name in _NOT_LOADED},
    "qwen3.5": {(LAYERWISE, *SCHEMES): TOWER_LOST},
    "qwen3.5-moe": {(LAYERWISE, *SCHEMES): TOWER_LOST},
    "llama4": {(LAYERWISE, *SCHEMES): TOWER_LOST},
    "gemma3": {FROM_PACKED: READ_DIRECTLY, STATIC: TOWER_UNREACHED},
    "gemma4": {STATIC: TOWER_UNREACHED},
    "gemma3n-text": {("w4-zero",): FEW_CHANNELS},
    "falcon": {FROM_PACKED: READ_DIRECTLY},
    "gpt-bigcode": {FROM_PACKED: READ_DIRECTLY},
    "mamba": {FROM_PACKED: READ_DIRECTLY, STATIC: NOT_CALLED},
    "mamba2": {FROM_PACKED: READ_DIRECTLY},
    "recurrent-gemma": {FROM_PACKED: READ_DIRECTLY},
    "bamba": {(LAYERWISE,): "its forward pass needs attention masks that are not passed layer by layer"},
    "olmo-hybrid": {tuple(SCHEMES): "from_pretrained cannot convert the exported folder's names"},
}
"""Architecture -> schemes -> what is missing today. A gap that is closed must leave this table: the tests say so."""


def deviation(architecture: str, scheme: str, cell: Cell) -> str:
    """How a cell differs from what is expected of it; empty: it does not."""
    fine = cell.outcome == "equal" and (cell.share is None or LEAST_SHARE <= cell.share <= 1)
    if _entry(KNOWN_GAPS, architecture, scheme) is not None:
        return "the gap is closed: take it out of KNOWN_GAPS" if fine else ""
    refusal = _entry(REFUSED, architecture, scheme)
    if refusal is not None:
        return "" if cell.outcome == "refused" and refusal in cell.reason else f"expected refused: …{refusal}…"
    return "" if fine else f"expected equal, share {LEAST_SHARE} or more"


def gap(architecture: str, scheme: str) -> str | None:
    """What is missing today, if the cell is a known gap."""
    return _entry(KNOWN_GAPS, architecture, scheme)


def _entry(table: Mapping[str, Mapping[tuple[str, ...], str]], architecture: str, scheme: str) -> str | None:
    entries = table.get(architecture, {})
    return next((reason for schemes, reason in entries.items() if scheme in schemes), None)
