"""Where a quantized model runs and where not, as tried or documented (docs/serving.md has the table)."""

from __future__ import annotations

from collections.abc import Collection

from plumbline.quantized_model.format_params import FormatParams

NO_CPU = "has no kernel for it on CPUs, so `plumbline serve-check` cannot try it"


def engine_remarks(weights: FormatParams, widths: Collection[int]) -> list[str]:
    """Restrictions on where matrices of a format run; transformers 5.23 with compressed-tensors 0.20 loads all of them.

    Args:
        weights: the format.
        widths: bits of the weights.
    """
    activations = weights.activations
    remarks = []
    if weights.weight_type == "int" and activations is None:
        remarks += _packed(weights, widths)
    elif weights.weight_type == "int" and activations is not None:
        remarks += _integers(weights)
    elif weights.weight_type == "fp8":
        remarks += _fp8(weights)
    else:
        remarks.append(f"{weights.weight_type} runs in vLLM on GPUs; vLLM 0.32 {NO_CPU}")
    return remarks


def _packed(weights: FormatParams, widths: Collection[int]) -> list[str]:
    remarks = []
    if weights.per_tensor:
        remarks.append("vLLM reads packed weights with a scale per group or output channel, not per tensor")
    elif set(widths) != {4}:
        remarks.append(
            "vLLM 0.33 has kernels for packed weights of 2 to 8 bits, with and without zero points, on CUDA GPUs; on "
            "CPUs for 4 bits only"
        )
    if 3 in widths:
        remarks.append("transformers reads packed weights of 3 bits with compressed-tensors 0.20 or newer only")
    return remarks


def _integers(weights: FormatParams) -> list[str]:
    activations = weights.activations
    assert activations is not None
    if activations.type == "fp8":
        return [
            "vLLM multiplies 4-bit weights with FP8 activations on Hopper GPUs (compute capability 9.0) only; it "
            f"{NO_CPU}"
        ]
    remarks = []
    if not weights.symmetric:
        remarks.append("vLLM reads 8-bit weights beside quantized activations without zero points only")
    if activations.dynamic and weights.weight_bits == 8:
        remarks.append(
            "vLLM divides a token's largest magnitude by 127 for its scale; compressed-tensors, and so the evaluation, "
            "by 127.5 (served, the bundled model is as close to its base model)"
        )
    return remarks


def _fp8(weights: FormatParams) -> list[str]:
    if weights.activations is None:
        return []
    return [
        "vLLM rounds the inputs of FP8 weights on GPUs of compute capability 8.9 or newer; older ones read the weights "
        "alone"
    ]
