"""Translates a scheme of params.yaml into a recipe of llm-compressor."""

from __future__ import annotations

from typing import Any

from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantization_config import activation_args, weight_args
from plumbline.quantized_model.scheme import grid_of_scheme

OBSERVERS = {
    "minmax": "memoryless_minmax",
    "mse": "memoryless_mse",
    "imatrix": "imatrix_mse",
    "hessian": "memoryless_mse",
}
"""Observers of weights by range rule, or the nearest there is: llm-compressor 0.14 has none that reads the Hessian, and
none that clips at a percentile."""


def recipe(name: str, scheme: SchemeParams) -> dict[str, Any]:
    """The recipe of llm-compressor 0.14 for a scheme.

    It sets every parameter that has a default, because defaults differ: llm-compressor's GPTQ reorders the columns, for
    example.

    Args:
        name: name of the scheme, for error messages.

    Returns:
        The content of recipe.yaml.

    Raises:
        ValueError: llm-compressor does not support a parameter of the scheme, or interprets it differently.
    """
    for part, reason in _unsupported(scheme).items():
        raise ValueError(
            f"scheme {name!r}: {part} has no counterpart in llm-compressor ({reason}); name another scheme of "
            "params.yaml with --scheme"
        )
    group = {
        "targets": ["Linear"],
        "weights": _weights(scheme),
        "input_activations": None if scheme.activations is None else _activations(scheme.activations),
        "output_activations": None,
    }
    common = {"config_groups": {"group_0": group}, "ignore": list(scheme.ignore)}
    modifiers: dict[str, Any] = {}
    if scheme.transform == "smoothquant":
        modifiers["SmoothQuantModifier"] = {"smoothing_strength": scheme.smoothing, "ignore": list(scheme.ignore)}
    if scheme.method == "gptq":
        modifiers["GPTQModifier"] = common | {
            "block_size": scheme.block_size,
            "dampening_frac": scheme.damping,
            "actorder": "static" if scheme.act_order else None,
        }
    else:
        modifiers["QuantizationModifier"] = common
    return {"quantization_stage": {"quantization_modifiers": modifiers}}


def differences(scheme: SchemeParams) -> list[str]:
    """What the recipe does otherwise than the scheme, in sentences; the samples are the same all the same."""
    lines = []
    if scheme.range == "hessian":
        lines.append("range: hessian becomes its mse observer, which does not weigh channels")
    if scheme.signed_scale:
        lines.append("signed_scale: true is left out, because its scales are positive")
    if scheme.correction:
        lines.append("correction is left out: it calibrates each layer behind the quantized ones, without correcting")
    return lines


def reads_samples(scheme: SchemeParams) -> bool:
    """Whether llm-compressor needs samples for a scheme."""
    static = scheme.activations is not None and not scheme.activations.dynamic
    return scheme.method == "gptq" or scheme.transform is not None or static


def _unsupported(scheme: SchemeParams) -> dict[str, str]:
    """The parameters of a scheme that a recipe cannot express: parameter -> reason."""
    reasons = {}
    if scheme.method == "adaround":
        reasons["method: adaround"] = "it learns roundings with AutoRound, another objective"
    if scheme.mixed is not None:
        reasons["mixed"] = "it takes widths layer by layer from the user"
    if scheme.overrides:
        reasons["overrides"] = "its groups need names of layers; write them into the recipe"
    if scheme.activations is not None and (scheme.activations.headroom != 1 or scheme.activations.range == "constant"):
        reasons["headroom, and range: constant"] = "its input global scales are those of the largest magnitude"
    if scheme.transform == "awq":
        reasons["transform: awq"] = "its AWQ searches on other losses and does not run without an accelerator"
    if scheme.range == "percentile":
        reasons["range: percentile"] = "it has minmax and mse"
    if scheme.activations is not None and not scheme.activations.dynamic and scheme.activations.range != "minmax":
        reasons[f"activations.range: {scheme.activations.range}"] = "its static ranges of activations are minmax"
    return reasons


def _weights(scheme: SchemeParams) -> dict[str, Any]:
    args = weight_args(grid_of_scheme(scheme, None, scheme.group_size)).model_dump(mode="json", exclude_none=True)
    return {**args, "dynamic": False, "observer": OBSERVERS[scheme.range]}


def _activations(activations: ActivationParams) -> dict[str, Any]:
    # The default observer, "minmax", is a moving average, which depends on the order of the samples.
    args = activation_args(activations).model_dump(mode="json", exclude_none=True)
    return {**args, "observer": None if activations.dynamic else "static_minmax"}
