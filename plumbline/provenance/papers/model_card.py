"""`modelCard` of a CycloneDX bill of materials: what was quantized, what was measured, and what is not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plumbline.artifact import canonical_json
from plumbline.evaluation.summary import bucket_name
from plumbline.provenance.link import dig
from plumbline.provenance.papers.facts import PaperFacts, domains_of
from plumbline.provenance.papers.intervals import CONFIDENCE, Interval
from plumbline.quantized_model.share import rows_of
from plumbline.raw_corpus.document import OUT_OF_DOMAIN

FIGURES = {
    "kl_mean": "KL divergence from the base model, mean, nats per token",
    "kl_p99": "KL divergence from the base model, 99th percentile, nats per token",
    "top1_agreement": "share of tokens whose most probable successor is the base model's",
    "perplexity_quantized": "perplexity",
    "perplexity_base": "perplexity of the base model",
    "perplexity_ratio": "perplexity, as a multiple of the base model's",
}
"""Figures of metrics.json that the card repeats, and their `type` in the card."""
SLICED = ("kl_mean", "top1_agreement", "perplexity_ratio")
"""The figures that are repeated per domain and per length."""
UNSCREENED = (
    "Plumbline does not screen calibration texts for personal, confidential or harmful content; whether anybody else "
    "did is not on record."
)


def model_card(facts: PaperFacts, datasets: list[str]) -> dict[str, Any]:
    """The card.

    Args:
        datasets: `bom-ref`s of the calibration set and of the texts of the evaluation.
    """
    causal = any(str(name).endswith("ForCausalLM") for name in facts.config.get("architectures") or [])
    architectures = facts.config.get("architectures") or []
    parameters: dict[str, Any] = {
        "task": "text-generation" if causal else None,
        "architectureFamily": facts.config.get("model_type"),
        "modelArchitecture": architectures[0] if architectures else None,
        "datasets": [{"ref": reference} for reference in datasets],
        "inputs": [{"format": "text"}] if causal else None,
        "outputs": [{"format": "text"}] if causal else None,
    }
    card: dict[str, Any] = {
        "modelParameters": {key: value for key, value in parameters.items() if value is not None},
        "considerations": _considerations(facts),
        "properties": _properties(facts),
    }
    if facts.evaluated is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": list(_metrics(facts))}
    return card


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def _metrics(facts: PaperFacts) -> Iterator[dict[str, Any]]:
    if facts.evaluated is None:
        return
    metrics, by_domain = facts.evaluated.metrics, facts.evaluated.by_domain
    for name in FIGURES:
        yield from _metric(name, metrics, facts.evaluated.intervals, "")
    parts = {f"domain {domain}": (values, by_domain.get(domain, {})) for domain, values in _items(metrics, "by_domain")}
    for bucket in metrics.get("by_length") or []:
        parts[f"samples of {bucket_name(bucket)} tokens"] = bucket, {}
    parts["texts of other domains"] = dig(metrics, OUT_OF_DOMAIN) or {}, {}
    for part, (values, ends) in parts.items():
        for name in SLICED:
            yield from _metric(name, values, ends, part)


def _items(metrics: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    return sorted((metrics.get(key) or {}).items())


def _metric(name: str, values: Mapping[str, Any], ends: Mapping[str, Interval], part: str) -> Iterator[dict[str, Any]]:
    """One figure with its interval; nothing where it was not measured."""
    value = values.get(name)
    if not isinstance(value, int | float):
        return
    metric: dict[str, Any] = {"type": FIGURES[name], "value": number(value)}
    if part:
        metric["slice"] = part
    if name in ends:
        low, high = ends[name]
        metric["confidenceInterval"] = {"lowerBound": number(low), "upperBound": number(high)}
    yield metric


def number(value: float) -> str:
    """Six significant digits; integers in full."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


# ---------------------------------------------------------------------------------------------------------------------
# Considerations and parameters


def _considerations(facts: PaperFacts) -> dict[str, Any]:
    record = facts.record
    limits = ["It inherits the limits of its base model; the figures here measure only what quantization changed."]
    coverage = record.get("coverage")
    if isinstance(coverage, dict):
        limits += [
            f"In full precision: {row['kind']}, {row['matrices']} ({row['why']})." for row in rows_of(coverage)["left"]
        ]
    if fallbacks := record.get("fallbacks"):
        reasons = sorted({str(reason) for reason in fallbacks.values()})
        limits.append(f"{len(fallbacks)} matrices were rounded by a fallback: {'; '.join(reasons)}.")
    if starved := record.get("starved"):
        limits.append(f"{len(starved)} matrices saw few calibration tokens: {', '.join(sorted(starved)[:5])}.")
    limits += [str(remark) for remark in dig(record, "notes", "remarks") or []]
    domains = ", ".join(f"{name} ({count})" for name, count in domains_of(facts.samples).items())
    limits.append(
        f"Calibration samples by domain: {domains}; what it loses on other texts is known only where measured."
    )
    tradeoffs = [_tradeoff(facts)] if facts.evaluated is not None else ["What quantization changed was not measured."]
    return {
        "technicalLimitations": limits,
        "performanceTradeoffs": tradeoffs,
        "ethicalConsiderations": [
            {
                "name": UNSCREENED,
                "mitigationStrategy": "calibration.json names every document; `plumbline affected TEXT` finds the "
                "models that a text is in.",
            }
        ],
    }


def _tradeoff(facts: PaperFacts) -> str:
    metrics = facts.evaluated.metrics if facts.evaluated is not None else {}
    parts = []
    if isinstance(size := metrics.get("weights_bytes"), int):
        base = metrics.get("base_weights_bytes")
        parts.append(f"{size:,} bytes of weights" + (f" instead of {base:,}" if isinstance(base, int) else ""))
    for name, text in (("kl_mean", "mean KL divergence {} nats per token"), ("top1_agreement", "top-1 agreement {}")):
        if isinstance(value := metrics.get(name), float):
            parts.append(text.format(number(value)))
    documents = metrics.get("documents")
    measured = f" on {documents} held-out documents" if isinstance(documents, int) else ""
    return f"{'; '.join(parts)}{measured}."


def _properties(facts: PaperFacts) -> list[dict[str, str]]:
    """Scheme, share, and how the figures were computed, as CycloneDX has no field for them."""
    coverage, scheme = facts.record.get("coverage") or {}, facts.record.get("scheme") or {}
    values: dict[str, Any] = {f"scheme.{key}": value for key, value in sorted(scheme.items())}
    values |= {
        "quantized.share_of_matrices": coverage.get("share"),
        "quantized.share_of_all_weights": coverage.get("share_of_all"),
    }
    for kind, counts in sorted((coverage.get("kinds") or {}).items()):
        values[f"weights.{kind}"], values[f"weights.{kind}.quantized"] = counts.get("weights"), counts.get("quantized")
    if facts.evaluated is not None:
        metrics = facts.evaluated.metrics
        values["bits_per_weight"] = metrics.get("bits_per_weight")
        if facts.evaluated.intervals:
            values["confidence"] = CONFIDENCE
            values["confidence.method"] = "studentized bootstrap over documents within each domain"
    return properties(values)


def properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """CycloneDX properties in the namespace `plumbline:`; what is None or empty is left out."""
    return [
        {"name": f"plumbline:{name}", "value": value if isinstance(value, str) else canonical_json(value)}
        for name, value in values.items()
        if value is not None and value not in ("", [], {})
    ]
