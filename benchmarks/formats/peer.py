"""llm-compressor on the same samples with its preset of a format, in an environment of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.formats.arms import FORMATS, GPTQ, PRESETS, RTN
from benchmarks.peers.contest import Contest, without
from benchmarks.peers.environments import REQUIREMENTS
from benchmarks.peers.recipes import LLM_COMPRESSOR

MODIFIERS = {RTN: "QuantizationModifier", GPTQ: "GPTQModifier"}
METHODS = {RTN: "rtn", GPTQ: "gptq"}


def recipe(format_: str, solver: str) -> dict[str, Any]:
    """The recipe that its documentation shows for a preset, whatever defaults that has."""
    modifier = {"targets": ["Linear"], "scheme": PRESETS[format_], "ignore": ["lm_head"]}
    return {"quantization_stage": {"quantization_modifiers": {MODIFIERS[solver]: modifier}}}


def quantized(contest: Contest, format_: str, solver: str) -> Path:
    """The folder of llm-compressor's model, made unless it is there for the same samples, model and versions.

    Raises:
        Unavailable: it does not run here.
    """
    name, settings = f"{PRESETS[format_]}-{METHODS[solver]}", recipe(format_, solver)
    out = contest.folder / LLM_COMPRESSOR / name
    scheme = {"method": METHODS[solver], **FORMATS[format_]}
    contest.measured(
        LLM_COMPRESSOR, name, settings, lambda: contest.handed_over(name, scheme, settings, without(out)), out
    )
    return out


def pins() -> str:
    """Its versions."""
    return ", ".join(REQUIREMENTS[LLM_COMPRESSOR])
