"""What is expected of every architecture under every scheme: equality, unless it is named here."""

from __future__ import annotations

from tests.architectures.cells import SCHEMES, Cell

LEAST_SHARE = 0.99
"""Of the weights that can be quantized: a scale per 32 weights leaves none of them out, a small matrix may be."""
LAYERWISE = "layerwise"
STATIC = ("w8a8-static", "w8a8-smooth")
ZERO = ("w4-zero",)
ALL = tuple(SCHEMES)

CONV1D = "transformers' Conv1D, which compressed-tensors does not store"
SHARED_KV = "attend to keys and values that earlier layers computed"
ONE_TENSOR = "stores all experts of a layer in one tensor"
ZERO_POINTS = "transformers drops the zero points of experts"
UNKNOWN = "experts in one tensor whose arithmetic is not known here"

_ONE_TENSOR = (
    "granite-moe", "granite-moe-shared", "granite-hybrid", "gpt-oss", "qwen3-vl-moe", "gemma4-moe-text",
)  # fmt: skip
_ONE_BY_ONE = (
    "mixtral", "qwen3-moe", "qwen3-moe-tied", "qwen3-moe-float16", "qwen3-moe-sharded", "deepseek-v2", "deepseek-v3",
    "glm4-moe", "dots1", "olmoe", "ernie4.5-moe", "minimax-m2", "flex-olmo", "solar-open", "nemotron-h", "lfm2-moe",
    "minimax", "qwen2-moe", "hunyuan-moe", "afmoe", "phi-moe", "jamba", "qwen3-next", "qwen3.5-moe-text",
    "deepseek-v3.2", "glm4-moe-lite", "exaone-moe", "mimo-v2-flash", "cohere2-moe", "kimi-linear", "glm4v-moe",
    "qwen3.5-moe",
)  # fmt: skip
REFUSED: dict[str, dict[tuple[str, ...], str]] = {
    **{name: {ZERO: ZERO_POINTS} for name in _ONE_BY_ONE},
    **{name: {ALL: ONE_TENSOR} for name in _ONE_TENSOR},
    "gpt2": {ALL: CONV1D},
    "jetmoe": {ALL: UNKNOWN},
    "longcat-flash": {ALL: UNKNOWN},
    "gemma3n-text": {(LAYERWISE,): SHARED_KV},
    "gemma4-text": {(LAYERWISE,): SHARED_KV},
    "gemma4": {(LAYERWISE,): SHARED_KV},
    "bamba": {(LAYERWISE,): "with its layers replaced its code fails"},
}
"""Architecture -> schemes -> part of the reason."""

SHARES: dict[str, dict[tuple[str, ...], float]] = {"mamba": {STATIC: 0.93}}
"""Architecture -> schemes -> least share, where it is lower: Mamba reads dt_proj without calling it."""


def deviation(architecture: str, scheme: str, cell: Cell) -> str:
    """How a cell differs from what is expected of it; empty: it does not."""
    entries = REFUSED.get(architecture, {})
    refusal = next((reason for schemes, reason in entries.items() if scheme in schemes), None)
    if refusal is not None:
        return "" if cell.outcome == "refused" and refusal in cell.reason else f"expected refused: …{refusal}…"
    shares = SHARES.get(architecture, {})
    least = next((share for schemes, share in shares.items() if scheme in schemes), LEAST_SHARE)
    fine = cell.outcome == "equal" and (cell.share is None or least <= cell.share <= 1)
    return "" if fine else f"expected equal, share {least} or more"
