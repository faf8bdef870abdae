"""Every scheme in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.calibration_report.glossary import describe_scheme
from plumbline.quantized_model.params import SchemeParams

GPTQ = (
    "weights are rounded one column at a time, each making up for the error of those before (GPTQ); reads the "
    "calibration set's second moments"
)
NEAREST = "each weight is rounded to the nearest value"


@pytest.mark.parametrize(
    ("entry", "sizes", "bits", "said"),
    [
        (
            {"method": "gptq", "weight_bits": 4, "group_size": 128},
            {"128": 40, "43": 5},
            {"4": 45},
            "4-bit weights, one scale per group of 128 (40 layers) and 43 (5 layers) weights; scales may be negative; "
            "of the weights that share a scale, the range with the least error is taken, weighted by what the columns "
            f"that follow cannot make up for; {GPTQ}; columns that see the most come first.",
        ),
        (
            {"method": "rtn", "weight_bits": 8, "activations": {}},
            {"per channel": 45},
            {"8": 45},
            "8-bit weights and 8-bit activations (one range per tensor from the calibration set), one scale per output "
            f"channel; {NEAREST}.",
        ),
        (
            {"method": "rtn", "weight_bits": 8, "per_tensor": True, "activations": {"dynamic": True}},
            {"per tensor": 45},
            {"8": 45},
            "8-bit weights and 8-bit activations (a scale per token, found while the model runs), one scale per layer; "
            f"{NEAREST}.",
        ),
        (
            {"method": "rtn", "weight_bits": 8, "activations": {"range": "percentile", "symmetric": False}},
            {"per channel": 45},
            {"8": 45},
            "8-bit weights and 8-bit activations (one range per tensor from the calibration set: values beyond the "
            f"99.99th percentile are cut off, not centred on zero), one scale per output channel; {NEAREST}.",
        ),
        (
            {"method": "rtn", "weight_bits": 2, "group_size": 64, "symmetric": False, "range": "mse"},
            {"64": 45},
            {"2": 45},
            "2-bit weights, one scale per group of 64 weights and a zero point beside it; of the weights that share a "
            f"scale, the range with the least squared error is taken; {NEAREST}.",
        ),
        (
            {"method": "gptq", "weight_bits": 3, "group_size": 64, "range": "hessian", "signed_scale": True},
            {"64": 45},
            {"3": 45},
            "3-bit weights, one scale per group of 64 weights; scales may be negative; of the weights that share a "
            "scale, the range with the least error is taken, weighted by what the columns that follow cannot make up "
            f"for; {GPTQ}; columns that see the most come first.",
        ),
    ],
)
def test_a_scheme_in_words(entry: dict[str, Any], sizes: dict[str, int], bits: dict[str, int], said: str) -> None:
    scheme = SchemeParams.model_validate(entry).model_dump(mode="json")
    assert describe_scheme(scheme, sizes, bits) == said


def test_the_widths_that_mixed_precision_came_to_are_named() -> None:
    scheme = SchemeParams.model_validate({"method": "adaround", "mixed": {"average_bits": 3.5}}).model_dump(mode="json")
    text = describe_scheme(scheme, {"per channel": 9}, {"3": 6, "8": 3})
    assert text.startswith("weights of 3.5 bits on average (3 bits in 6 layers and 8 bits in 3 layers), one scale per")
    assert "AdaRound" in text
    assert describe_scheme(scheme, {"per channel": 9}, {}).startswith("weights of 3.5 bits on average, one scale per")


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"method": "rtn", "weight_bits": 8, "activations": {}, "transform": "smoothquant"}, "SmoothQuant"),
        ({"method": "gptq", "transform": "awq"}, "AWQ"),
        ({"method": "gptq", "propagate": "quantized"}, "the set is run again, and undoes 50 % of their error"),
    ],
)
def test_what_is_asked_for_is_said_and_nothing_else(entry: dict[str, Any], word: str) -> None:
    def words(params: dict[str, Any]) -> str:
        return describe_scheme(SchemeParams.model_validate(params).model_dump(mode="json"), {"per channel": 1}, {})

    assert word in words(entry)
    assert word not in words({key: entry[key] for key in entry if key in ("method", "weight_bits", "activations")})


def test_the_order_of_columns_is_gptqs_alone() -> None:
    def words(**params: Any) -> str:
        return describe_scheme(SchemeParams.model_validate(params).model_dump(mode="json"), {"per channel": 1}, {})

    assert "columns that see the most come first" in words(method="gptq")
    for params in ({"method": "gptq", "act_order": False}, {"method": "rtn"}, {"method": "adaround"}):
        assert "come first" not in words(**params)


def test_an_older_record_without_the_newer_fields_is_described_too() -> None:
    old = {"method": "rtn", "weight_bits": 4, "group_size": 128, "activations": None}
    assert describe_scheme(old, {"128": 3}, {}) == f"4-bit weights, one scale per group of 128 weights; {NEAREST}."


def test_formats_and_overrides_are_said() -> None:
    scheme = SchemeParams.model_validate(
        {
            "method": "rtn",
            "weight_type": "nvfp4",
            "activations": {"type": "nvfp4"},
            "overrides": {"attention": {"weight_type": "fp8", "block_structure": [128, 128]}},
        }
    )
    assert describe_scheme(scheme.model_dump(mode="json"), {"16": 18, "per channel": 24}, {"4": 18, "8": 24}) == (
        "NVFP4 weights and NVFP4 activations (a scale per 16 channels of a token, found while the model runs, below a "
        "global scale that comes from the calibration set), one scale per group of 16 weights; in attention, FP8 "
        f"weights, one scale per block of 128 x 128; {NEAREST}."
    )
