"""The formats and solvers that are measured, as entries of params.yaml, and llm-compressor's name of each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plumbline.quantized_model.params import SchemeParams
from plumbline.study.controls import without_calibration

TOKEN: dict[str, Any] = {"type": "fp8", "dynamic": True}
FORMATS: dict[str, dict[str, Any]] = {
    "fp8-tensor": {"weight_type": "fp8", "per_tensor": True, "activations": {"type": "fp8"}},
    "fp8-static": {"weight_type": "fp8", "activations": {"type": "fp8"}},
    "fp8-dynamic": {"weight_type": "fp8", "activations": TOKEN},
    "fp8-block": {"weight_type": "fp8", "block_structure": [128, 128], "activations": TOKEN | {"group_size": 128}},
    "mxfp8": {"weight_type": "mxfp8", "activations": {"type": "mxfp8"}},
    "nvfp4": {"weight_type": "nvfp4", "activations": {"type": "nvfp4"}},
    "nvfp4-fp8-attention": {
        "weight_type": "nvfp4",
        "activations": {"type": "nvfp4"},
        "overrides": {"attention": {"weight_type": "fp8", "activations": TOKEN}},
    },
    "nvfp4-experts": {
        "weight_type": "fp8",
        "activations": TOKEN,
        "overrides": {"experts": {"weight_type": "nvfp4"}},
        "loads_in": "vllm",
    },
    "nvfp4a16": {"weight_type": "nvfp4"},
    "mxfp4": {"weight_type": "mxfp4", "activations": {"type": "mxfp4"}},
    "w4afp8": {"weight_bits": 4, "group_size": 128, "activations": TOKEN},
    "w4a8": {"weight_bits": 4, "group_size": 128, "activations": {"dynamic": True}},
    "w4a16": {"weight_bits": 4, "group_size": 128},
}
PRESETS = {
    "fp8-tensor": "FP8",
    "fp8-dynamic": "FP8_DYNAMIC",
    "fp8-block": "FP8_BLOCK",
    "nvfp4": "NVFP4",
    "nvfp4a16": "NVFP4A16",
    "mxfp4": "MXFP4",
    "w4afp8": "W4AFP8",
}
"""The presets of llm-compressor that are compared."""
NONE, RTN, MSE, IMATRIX, GPTQ, ADAROUND = (
    "no calibration",
    "rtn",
    "rtn, range: mse",
    "rtn, range: imatrix",
    "gptq",
    "adaround",
)
SOLVERS = (NONE, RTN, MSE, IMATRIX, GPTQ, ADAROUND)
FOUR_BITS = (MSE, IMATRIX, ADAROUND)
"""Solvers that change FP8 and MXFP8 by less than an interval, and are measured at 4 bits only."""


def arms(name: str) -> dict[str, SchemeParams]:
    """The schemes of a format by solver."""
    entry = FORMATS[name]
    four = entry.get("weight_bits") == 4 or entry.get("weight_type") in ("nvfp4", "mxfp4")
    gptq = _scheme(entry, method="gptq")
    uncalibrated = without_calibration(gptq)
    assert uncalibrated is not None  # GPTQ reads statistics
    everything = {
        NONE: uncalibrated,
        RTN: _scheme(entry, method="rtn"),
        MSE: _scheme(entry, method="rtn", range="mse"),
        IMATRIX: _scheme(entry, method="rtn", range="imatrix"),
        GPTQ: gptq,
        ADAROUND: _scheme(entry, method="adaround"),
    }
    return {solver: scheme for solver, scheme in everything.items() if four or solver not in FOUR_BITS}


def _scheme(entry: Mapping[str, Any], **rest: Any) -> SchemeParams:
    return SchemeParams.model_validate({**entry, **rest})
