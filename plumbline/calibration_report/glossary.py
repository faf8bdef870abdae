"""Explanations of the report's terms and of the schemes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plumbline.calibration_report.study import Study
from plumbline.calibration_report.wording import join
from plumbline.quantized_model.kv_cache_words import in_words
from plumbline.quantized_model.record import granularity

TERMS = {
    "Quantization": "Storing a model's weights, and sometimes its activations, as integers of few bits. The model "
    "becomes smaller and faster, and its answers change a little.",
    "Calibration": "Running the model over a few texts to learn what its layers see, so that the integers can be "
    "chosen well. Which texts those are is the calibration choice.",
    "Calibration set": "The texts that a choice drew, in order. Plumbline stores them with the model they shaped.",
    "Scheme": "How a model is quantized: the method, the number of bits, and how many weights share a scale.",
    "KL divergence": "How far the quantized model's probabilities for the next token are from the base model's, in "
    "nats, averaged over tokens. 0 means the same probabilities everywhere; lower is better.",
    "KL, 99th percentile": "One token in a hundred is changed at least this much: what happens in the worst places, "
    "which the mean hides.",
    "Perplexity": "How surprised a model is by the text that really came next: e to the mean negative log-likelihood "
    "per token. Lower is better; compare it with the base model's.",
    "Top-1 agreement": "The share of tokens where both models find the same next token most probable.",
    "RMS Δp": "By how much quantization changes the probability of the token that really came next: the root of the "
    "mean square change, in percentage points.",
    "Interval": "Had other documents of the same kind been held out, the figure would have come out a little "
    "different. The interval says how much, from drawing the documents again, thousands of times.",
    "Held-out documents": "Documents that no calibration set may contain. All figures here come from them.",
}

METHODS = {
    "rtn": "each weight is rounded to the nearest value",
    "gptq": "weights are rounded one column at a time, each making up for the error of those before (GPTQ); reads the "
    "calibration set's second moments",
    "adaround": "each weight is rounded up or down so that the layer's output changes least (AdaRound, here solved on "
    "the calibration set's second moments)",
}
TRANSFORMS = {
    "smoothquant": "before that, SmoothQuant: channels of the activations that reach far are scaled down, and their "
    "weights up by as much",
    "awq": "before that, AWQ: weights that meet large activations are scaled up, so that rounding costs them less",
}
TYPES = {"fp8": "FP8", "nvfp4": "NVFP4", "mxfp4": "MXFP4", "mxfp8": "MXFP8"}
RANGES = {
    "percentile": "values beyond the {percentile:g}th percentile are cut off",
    "mse": "the range with the least squared error is taken",
    "imatrix": "the range with the least squared error is taken, weighted by how large the inputs are",
    "hessian": "the range with the least error is taken, weighted by what the columns that follow cannot make up for",
}


def scheme_sentence(study: Study, name: str) -> dict[str, Any]:
    """Name and description of a scheme, with the widths and group sizes in use."""
    figures = study.metrics[study.calibrations[0], name]
    text = describe_scheme(figures["scheme"], figures["group_sizes"], figures.get("bits", {}))
    return {"name": name, "text": text}


def describe_scheme(scheme: Mapping[str, Any], sizes: Mapping[str, int], bits: Mapping[str, int]) -> str:
    """A scheme described in words.

    Args:
        scheme: an entry of params.yaml with all defaults; an option that an older record lacks is off.
        sizes: layers by group size, "per channel" or "per tensor".
        bits: layers by width of a weight; read for mixed precision.
    """
    overrides = scheme.get("overrides") or {}
    parts = [_weights(scheme, own_size(scheme) if overrides else sizes, bits)]
    parts += [f"in {kind}, {_weights(own, own_size(own), {})}" for kind, own in overrides.items()]
    parts.append(METHODS.get(scheme["method"], scheme["method"]) + _order(scheme))
    if transform := scheme.get("transform"):
        parts.append(TRANSFORMS.get(transform, transform))
    if kv_cache := scheme.get("kv_cache"):
        parts.append(in_words(kv_cache))
    if scheme.get("propagate") == "quantized":
        parts.append(
            "each layer is solved behind the ones that are already quantized, so the set is run again"
            + (f", and undoes {100 * scheme['correction']:.0f} % of their error" if scheme.get("correction") else "")
        )
    return "; ".join(parts) + "."


def _weights(scheme: Mapping[str, Any], sizes: Mapping[str, int], bits: Mapping[str, int]) -> str:
    if mixed := scheme.get("mixed"):
        used = [f"{width} bits in {count} layers" for width, count in sorted(bits.items())]
        text = f"weights of {mixed['average_bits']:g} bits on average" + (f" ({join(used)})" if used else "")
    else:
        text = f"{TYPES.get(scheme.get('weight_type', 'int')) or str(scheme['weight_bits']) + '-bit'} weights"
    if activations := scheme.get("activations"):
        width = TYPES.get(activations.get("type", "int")) or f"{activations['bits']}-bit"
        text += f" and {width} activations ({_activations(activations)})"
    return f"{text}, {_scales(scheme, sizes)}"


def own_size(scheme: Mapping[str, Any]) -> dict[str, int]:
    """What shares a scale by the scheme itself, as `sizes` has it."""
    return {granularity({"group_size": None, **scheme, "block": scheme.get("block_structure")}): 1}


def _activations(activations: Mapping[str, Any]) -> str:
    if activations["dynamic"]:
        size = activations.get("group_size")
        return f"a scale per {f'{size} channels of a ' if size else ''}token, found while the model runs"
    if activations.get("type") == "nvfp4":
        source = "is 1" if activations.get("range") == "constant" else "comes from the calibration set"
        return f"a scale per 16 channels of a token, found while the model runs, below a global scale that {source}"
    range_ = RANGES.get(activations.get("range", "minmax"))
    text = "one range per tensor from the calibration set" + (f": {range_.format(**activations)}" if range_ else "")
    return text if activations.get("symmetric", True) else f"{text}, not centred on zero"


def _scales(scheme: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    if set(sizes) <= {"per channel"}:
        text = "one scale per output channel"
    elif set(sizes) == {"per tensor"}:
        text = "one scale per layer"
    elif all(size.startswith("blocks") for size in sizes):
        text = f"one scale per {join([size.replace('blocks', 'block') for size in sorted(sizes)])}"
    else:
        used = [f"{size} ({count} layers)" if len(sizes) > 1 else size for size, count in sorted(sizes.items())]
        text = f"one scale per group of {join(used)} weights"
    if not scheme.get("symmetric", True):
        text += " and a zero point beside it"
    if scheme.get("signed_scale"):
        text += "; scales may be negative"
    range_ = RANGES.get(scheme.get("range", "minmax"))
    return text + (f"; of the weights that share a scale, {range_.format(**scheme)}" if range_ else "")


def _order(scheme: Mapping[str, Any]) -> str:
    return "; columns that see the most come first" if scheme.get("act_order") else ""
