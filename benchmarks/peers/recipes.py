"""The settings that are compared: for a format, every tool's recipes by name.

`default` is what a user gets who names the format and nothing else; `like` is the same settings in all tools; `best` is
the recipe of least KL that we know of in that tool, for the same format. All recipes of a format store the same bits:
symmetric integers with a scale per group of input channels, activations and lm_head in full precision.

How errors of earlier layers reach later ones stays each tool's own under `like`: llm-compressor, GPTQModel and
AutoRound calibrate every layer behind the quantized ones; Plumbline collects once, on the full-precision model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLUMBLINE, LLM_COMPRESSOR, GPTQMODEL, AUTO_ROUND = "plumbline", "llm_compressor", "gptqmodel", "auto_round"
TOOLS = (PLUMBLINE, LLM_COMPRESSOR, GPTQMODEL, AUTO_ROUND)
DEFAULT, LIKE, BEST, LIGHT = "default", "like", "best", "light"
OWN_DEFAULT = (PLUMBLINE, DEFAULT)
"""The row that all others are compared with."""


@dataclass(frozen=True)
class Format:
    """Symmetric integers of `bits` bits, a scale per `group_size` input channels, activations in full precision."""

    bits: int
    group_size: int

    @property
    def name(self) -> str:
        """For tables and folders, such as "W4A16-g128"."""
        return f"W{self.bits}A16-g{self.group_size}"


LIKE_SCHEME = {
    "act_order": True,
    "range": "minmax",
    "signed_scale": False,
    "damping": 0.01,
    "block_size": 128,
    "propagate": "full_precision",
    "symmetric": True,
}
"""`like`: GPTQ with columns in order of the Hessian's diagonal, groups fixed before, and scales from the extremes."""


def recipes(tool: str, form: Format) -> dict[str, dict[str, Any]]:
    """The recipes of a tool for a format: name -> settings, in the tool's own words."""
    makers = {
        PLUMBLINE: plumbline,
        LLM_COMPRESSOR: llm_compressor,
        GPTQMODEL: gptqmodel,
        AUTO_ROUND: auto_round,
    }
    return makers[tool](form)


def plumbline(form: Format) -> dict[str, dict[str, Any]]:
    """Entries of params.yaml; the default names the format alone, so that it follows SchemeParams."""
    default = {"method": "gptq", "weight_bits": form.bits, "group_size": form.group_size}
    return {
        DEFAULT: default,
        LIKE: default | LIKE_SCHEME,
        BEST: default | {"propagate": "quantized"},
    }


def llm_compressor(form: Format) -> dict[str, dict[str, Any]]:
    """Recipes for `oneshot`; a recipe that is empty stands for the one that `plumbline export` wrote.

    The arguments of the weights are those of its preset scheme W4A16 with the group size changed, and so `default` is
    its GPTQ as documented: activation order "static", damping 0.01, calibration behind quantized layers.
    """
    weights = {
        "num_bits": form.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": form.group_size,
        "dynamic": False,
    }

    def stage(weights: Mapping[str, Any], **before: Any) -> dict[str, Any]:
        groups = {"group_0": {"targets": ["Linear"], "weights": dict(weights)}}
        gptq = {"config_groups": groups, "ignore": ["lm_head"]}
        return {"quantization_stage": {"quantization_modifiers": {**before, "GPTQModifier": gptq}}}

    return {DEFAULT: stage(weights), LIKE: {}, BEST: stage(weights | {"observer": "memoryless_mse"})}


def gptqmodel(form: Format) -> dict[str, dict[str, Any]]:
    """Arguments of `QuantizeConfig`. Its default: group-aware order, damping 0.05."""
    default = {"bits": form.bits, "group_size": form.group_size}
    same_order = {"desc_act": True, "static_groups": True, "act_group_aware": False}
    return {
        DEFAULT: default,
        LIKE: default | same_order | {"damp_percent": 0.01, "sym": True, "mse": 0.0},
        BEST: default | {"mse": 2.4, "gptaq": {"alpha": 0.25}},
    }


def auto_round(form: Format) -> dict[str, dict[str, Any]]:
    """Arguments of `AutoRound`. It has no GPTQ, so there is no `like`; its recipes differ in the iterations per block.

    `best` is its documented auto-round-best; `light` has less than the 50 iterations of auto-round-light, for CPUs.
    """
    default = {"scheme": "W4A16", "bits": form.bits, "group_size": form.group_size}
    return {
        DEFAULT: default,
        BEST: default | {"iters": 1000},
        LIGHT: default | {"iters": 20, "lr": 5e-3, "batch_size": 4},
    }


def too_long(tool: str, recipe: str, subject: str) -> str | None:
    """Why a recipe is left out on a subject unless --all is given."""
    return TOO_LONG.get((tool, recipe, subject))


TOO_LONG = {
    (AUTO_ROUND, DEFAULT, "SmolLM2-135M"): "about 7,700 CPU seconds: 200 iterations of 1.3 s in each of 30 blocks",
    (AUTO_ROUND, BEST, "SmolLM2-135M"): "about 39,000 CPU seconds: 1,000 iterations of 1.3 s in each of 30 blocks",
    (AUTO_ROUND, BEST, "bundled-6M"): "five times the CPU seconds of its default",
}
"""Extrapolated from one forward and backward pass of a block on 8 x 512 tokens, float32, a core with AVX2."""
