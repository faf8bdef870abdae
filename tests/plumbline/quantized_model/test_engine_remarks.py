"""Where a scheme runs: what is said about which formats, once each."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.quantized_model.params import SchemeParams

WIDTHS, THREE, DIVISOR = "2 to 8 bits", "3 bits with compressed-tensors 0.20", "by 127 for its scale"


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ({"method": "gptq", "weight_bits": 4, "group_size": 128}, []),
        ({"method": "rtn", "weight_bits": 4, "group_size": 128, "symmetric": False}, []),
        ({"method": "gptq", "weight_bits": 3, "group_size": 128}, [WIDTHS, THREE]),
        ({"method": "gptq", "weight_bits": 2, "group_size": 64}, [WIDTHS]),
        ({"method": "rtn", "weight_bits": 8, "group_size": 128}, [WIDTHS]),
        ({"method": "gptq", "group_size": 128, "mixed": {"average_bits": 4}}, [WIDTHS, THREE]),
        ({"method": "gptq", "group_size": 128, "mixed": {"average_bits": 5, "widths": [4, 8]}}, [WIDTHS]),
        ({"method": "rtn", "weight_bits": 4, "per_tensor": True}, ["not per tensor"]),
        ({"method": "rtn", "weight_bits": 8, "activations": {"range": "mse"}}, []),
        ({"method": "rtn", "weight_bits": 8, "activations": {"symmetric": False}}, []),
        ({"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}}, [DIVISOR]),
        ({"method": "rtn", "weight_bits": 8, "symmetric": False, "activations": {}}, ["without zero points only"]),
        ({"method": "rtn", "group_size": 128, "activations": {"type": "fp8", "dynamic": True}}, ["Hopper"]),
        ({"method": "rtn", "weight_bits": 4, "group_size": 128, "activations": {"dynamic": True}}, []),
        ({"method": "rtn", "weight_type": "fp8"}, []),
        ({"method": "rtn", "weight_type": "fp8", "activations": {"type": "fp8"}}, ["capability 8.9"]),
        ({"method": "rtn", "weight_type": "nvfp4"}, ["nvfp4 runs in vLLM on GPUs"]),
        ({"method": "rtn", "weight_type": "mxfp8", "activations": {"type": "mxfp8"}}, ["mxfp8 runs in vLLM on GPUs"]),
        (
            {"method": "rtn", "weight_bits": 3, "group_size": 128, "overrides": {
                "attention": {"weight_bits": 3, "group_size": 64}, "mlp": {"weight_type": "mxfp4"}}},
            [WIDTHS, THREE, "mxfp4 runs"],
        ),
    ],
)  # fmt: skip
def test_what_is_said_about_a_scheme(scheme: dict[str, Any], expected: list[str]) -> None:
    remarks = SchemeParams.model_validate(scheme).remarks
    assert len(remarks) == len(expected) and all(
        part in remark for part, remark in zip(expected, remarks, strict=True)
    ), remarks
