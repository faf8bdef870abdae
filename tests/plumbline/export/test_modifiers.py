"""Schemes in the words of llm-compressor."""

from __future__ import annotations

from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationArgs

from plumbline.export.modifiers import differences, reads_samples, recipe
from plumbline.quantized_model.params import SchemeParams


def modifiers(**scheme: Any) -> dict[str, Any]:
    stages = recipe("mine", SchemeParams.model_validate(scheme))
    found: dict[str, Any] = stages["quantization_stage"]["quantization_modifiers"]
    return found


def test_gptq_says_everything_that_has_another_default_there() -> None:
    plain = {"range": "minmax", "signed_scale": False, "act_order": False}
    (settings,) = modifiers(method="gptq", weight_bits=4, group_size=128, **plain).values()
    # GPTQModifier of llm-compressor 0.14: actorder "static", lm_head not ignored.
    assert settings["actorder"] is None and settings["ignore"] == ["lm_head"]
    assert (settings["dampening_frac"], settings["block_size"]) == (0.01, 128)
    weights = settings["config_groups"]["group_0"]["weights"]
    assert weights == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 128,
        "dynamic": False,
        "observer": "memoryless_minmax",
    }
    (settings,) = modifiers(method="gptq", group_size=128).values()
    assert settings["actorder"] == "static"
    assert settings["config_groups"]["group_0"]["weights"]["observer"] == "memoryless_mse"


def test_what_the_recipe_does_otherwise_is_said() -> None:
    def said(**scheme: Any) -> list[str]:
        return differences(SchemeParams.model_validate(scheme))

    assert said(method="rtn") == []
    assert [line.split()[0] for line in said(method="gptq", propagate="quantized")] == [
        *("range:", "signed_scale:", "correction")
    ]


@pytest.mark.parametrize(
    ("scheme", "strategy"),
    [({}, "channel"), ({"group_size": 64}, "group"), ({"per_tensor": True}, "tensor")],
    ids=["channel", "group", "tensor"],
)
def test_granularity(scheme: dict[str, Any], strategy: str) -> None:
    group = modifiers(method="rtn", weight_bits=8, **scheme)["QuantizationModifier"]["config_groups"]["group_0"]
    assert QuantizationArgs.model_validate(group["weights"]).strategy == strategy
    assert group["input_activations"] is None


def test_static_activations_do_not_get_the_moving_average() -> None:
    static = modifiers(method="rtn", weight_bits=8, activations={})["QuantizationModifier"]
    assert static["config_groups"]["group_0"]["input_activations"]["observer"] == "static_minmax"
    dynamic = modifiers(method="rtn", weight_bits=8, activations={"dynamic": True})["QuantizationModifier"]
    args = QuantizationArgs.model_validate(dynamic["config_groups"]["group_0"]["input_activations"])
    assert args.dynamic and args.strategy == "token"


def test_smoothing_comes_before_rounding() -> None:
    found = modifiers(method="rtn", weight_bits=8, activations={}, transform="smoothquant", smoothing=0.7)
    assert list(found) == ["SmoothQuantModifier", "QuantizationModifier"]
    assert found["SmoothQuantModifier"]["smoothing_strength"] == 0.7


@pytest.mark.parametrize(
    ("scheme", "named"),
    [
        ({"method": "adaround"}, "method: adaround"),
        ({"method": "gptq", "mixed": {"average_bits": 4}}, "mixed"),
        ({"method": "rtn", "transform": "awq"}, "transform: awq"),
        ({"method": "rtn", "range": "percentile"}, "range: percentile"),
        ({"method": "rtn", "weight_bits": 8, "activations": {"range": "mse"}}, "activations.range: mse"),
    ],
)
def test_what_llm_compressor_lacks_is_refused_by_name(scheme: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"'mine': {named} has no counterpart"):
        modifiers(**scheme)


def test_which_recipes_read_samples() -> None:
    def reads(**scheme: Any) -> bool:
        return reads_samples(SchemeParams.model_validate(scheme))

    assert reads(method="gptq") and reads(method="rtn", weight_bits=8, activations={})
    assert not reads(method="rtn") and not reads(method="rtn", weight_bits=8, activations={"dynamic": True})
