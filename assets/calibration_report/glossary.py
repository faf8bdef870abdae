"""The words of the report, for readers who have not met them."""

from __future__ import annotations

from typing import Any

from assets.calibration_report.study import Study
from assets.calibration_report.wording import join

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
    "Interval": "Had other documents of the same kind been held out, the figure would have come out a little "
    "different. The interval says how much, from drawing the documents again, thousands of times.",
    "Held-out documents": "Documents that no calibration set may contain. All figures here come from them.",
}

METHODS = {
    "rtn": "weights rounded to nearest",
    "gptq": "weights rounded one column at a time, each making up for the error of those before (GPTQ); reads the "
    "calibration set's second moments",
}


def scheme_sentence(study: Study, name: str) -> dict[str, Any]:
    """Name and meaning of a scheme, with the group sizes that were really used."""
    figures = study.metrics[study.calibrations[0], name]
    scheme, sizes = figures["scheme"], figures["group_sizes"]
    bits = f"{scheme['weight_bits']}-bit weights"
    if activations := scheme.get("activations"):
        when = "a scale per token" if activations["dynamic"] else "one range per tensor from the calibration set"
        bits += f" and {activations['bits']}-bit activations ({when})"
    used = [f"{size} ({count} layers)" if len(sizes) > 1 else size for size, count in sorted(sizes.items())]
    if set(sizes) == {"per channel"}:
        groups = "one scale per output channel"
    else:
        groups = f"one scale per group of {join(used)} weights"
    return {"name": name, "text": f"{bits}, {groups}; {METHODS.get(scheme['method'], scheme['method'])}."}
