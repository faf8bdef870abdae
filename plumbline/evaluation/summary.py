"""What the UI shows of an evaluation, from its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json
from plumbline.raw_corpus.document import OUT_OF_DOMAIN


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, the figures over all tokens and per length, KL per domain, layer errors, and the counts."""
    metrics = read_json(folder / "metrics.json")
    shown: dict[str, Any] = {"sentence": _sentence(metrics)} | _numbers(metrics)
    shown |= {f"kl_mean_{domain}": figures["kl_mean"] for domain, figures in metrics["by_domain"].items()}
    shown["by_length"] = [{"samples of tokens": bucket_name(bucket), **bucket} for bucket in metrics["by_length"]]
    shown |= layer_error_figures(metrics["layer_errors"])
    for part in (OUT_OF_DOMAIN, "flips"):
        shown |= {f"{part}_{name}": value for name, value in _numbers(metrics.get(part, {})).items()}
    return shown


def bucket_name(bucket: Mapping[str, Any]) -> str:
    """A bucket of `by_length` in the names of figures: 65-256, over-4096."""
    shortest, longest = bucket["shortest"], bucket["longest"]
    return f"over-{shortest - 1}" if longest is None else f"{shortest}-{longest}"


def layer_error_figures(errors: Mapping[str, float]) -> dict[str, Any]:
    """Mean and largest of `layer_errors`, and the layer that has it; nothing where none is known."""
    if not errors:
        return {}
    worst = max(errors, key=errors.__getitem__)
    mean = sum(errors.values()) / len(errors)
    return {"layer_error_mean": mean, "layer_error_max": errors[worst], "worst_layer": worst}


def _sentence(metrics: Mapping[str, Any]) -> str:
    return (
        f"KL {metrics['kl_mean']:.3g} nats per token to the base model, whose perplexity "
        f"{metrics['perplexity_base']:.4g} became {metrics['perplexity_quantized']:.4g}; the same next token for "
        f"{100 * metrics['top1_agreement']:.1f} % of {metrics['tokens']} tokens."
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
