"""The verdict in sentences for readers without knowledge of statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

CALLED = ("better", "worse")


def headline(
    comparisons: Sequence[Mapping[str, Any]], schemes: Sequence[str], practical: Callable[[Mapping[str, Any]], bool]
) -> str:
    """One sentence on the whole comparison.

    Args:
        practical: whether a difference that was found matters in practice.
    """
    if not comparisons:
        return "Only one calibration choice: there is nothing to compare it with."
    if all(c["verdict"] == "too few documents" for c in comparisons if c["verdict"] != "identical"):
        if any(c["verdict"] == "too few documents" for c in comparisons):
            return "Too few held-out documents to tell calibration choices apart."
        return "The calibration choice changes nothing: all choices give the same weights."
    called = [c for c in comparisons if c["verdict"] in CALLED]
    if not called:
        return "No difference between the calibration choices was detected."
    matters = [s for s in schemes if any(c["scheme"] == s and practical(c) for c in called)]
    if not matters:
        return "Calibration choices differ, but by too little to matter in practice."
    if len(matters) == len(schemes):
        return f"The calibration choice matters under {_all(len(schemes))}."
    return f"The calibration choice matters under {len(matters)} of {len(schemes)} schemes: {join(matters)}."


def sentences(comparisons: Sequence[Mapping[str, Any]], confidence: float) -> list[str]:
    """Sentences on differences, then on comparisons without one, then on identical weights per scheme."""
    called = [c for c in comparisons if c["verdict"] in CALLED]
    called.sort(key=lambda c: -abs(c["relative"]["difference"]) if "relative" in c else 0.0)
    texts = [_called(c, confidence) for c in called]
    texts += [_not_called(c) for c in comparisons if c["verdict"] == "no difference detected"]
    texts += [_too_few(c) for c in comparisons if c["verdict"] == "too few documents"]
    for scheme in dict.fromkeys(c["scheme"] for c in comparisons if c["verdict"] == "identical"):
        same = [c for c in comparisons if c["scheme"] == scheme and c["verdict"] == "identical"]
        names = join([same[0]["baseline"], *(c["choice"] for c in same)])
        whole = len(same) == sum(c["scheme"] == scheme for c in comparisons)
        why = " (nothing in this scheme depended on the choice)" if whole else ""
        texts.append(f"{scheme}: {names} give identical weights, byte for byte{why}.")
    return texts


def _called(c: Mapping[str, Any], confidence: float) -> str:
    more = "lower" if c["verdict"] == "better" else "higher"
    text = (
        f"{c['scheme']}: {c['choice']} is {c['verdict']} than {c['baseline']}: its divergence from the base model is "
    )
    text += f"{nats(c['kl_mean'])} instead of {nats(c['kl_mean_baseline'])} nats per token"
    if "relative" in c and c["relative"]["low"] is not None:
        ends = sorted(abs(c["relative"][end]) for end in ("low", "high"))
        text += f", {percent(abs(c['relative']['difference']))} {more}"
        text += f" ({100 * confidence:g} % interval {percent(ends[0])} to {percent(ends[1])})"
    return text + "."


def _not_called(c: Mapping[str, Any]) -> str:
    text = f"{c['scheme']}: no difference detected between {c['choice']} and {c['baseline']}"
    text += f" ({nats(c['kl_mean'])} and {nats(c['kl_mean_baseline'])} nats per token)"
    if c["smallest_difference"] is None:
        return (
            text + "; the documents are too alike in all but a few to say how small a difference would have been seen."
        )
    size = c.get("relative", {}).get("smallest_difference")
    seen = percent(size) if size is not None else f"{short_nats(c['smallest_difference'])} nats per token"
    return f"{text}; a difference of {seen} or more would have been called."


def _too_few(c: Mapping[str, Any]) -> str:
    return (
        f"{c['scheme']}: {c['choice']} has {nats(c['kl_mean'])}, {c['baseline']} {nats(c['kl_mean_baseline'])} nats "
        "per token; too few documents to say whether that is more than chance. Raise evaluation.tokens_per_domain or "
        "tokenize.splits.report."
    )


def nats(value: float) -> str:
    """A divergence: three digits, 0.130."""
    return f"{value:#.3g}"


def short_nats(value: float) -> str:
    """A difference of divergences: two digits, 0.0060."""
    return f"{value:#.2g}"


def count(number: int) -> str:
    """A number with its thousands apart: 29 528, with narrow no-break spaces."""
    return f"{number:,}".replace(",", "\u202f")


def percent(share: float) -> str:
    """0.0123 -> "1.2 %"; two significant digits below 10 %, but none beyond 0.01 %, and none after the point above."""
    value = 100 * share
    if abs(value) < 0.005:
        return "0 %"
    if abs(value) < 0.0995:
        return f"{value:.2f} %"
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:#.2g} %"


def signed(share: float) -> str:
    """0.012 -> "+1.2 %"."""
    text = percent(abs(share))
    return ("±" if text == "0 %" else "+" if share > 0 else "−") + text


def base_model_in_words(origin: Mapping[str, Any]) -> str:
    """Name, revision and digest of a base model, as artifacts record them."""
    revision = f" at revision {origin['revision']}" if origin.get("revision") else ""
    dequantized = f", dequantized from {origin['dequantized_from']}" if origin.get("dequantized_from") else ""
    return f"{origin['name']}{revision}{dequantized} (digest {str(origin['digest'])[:12]})"


def join(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _all(count: int) -> str:
    return {1: "the one scheme", 2: "both schemes"}.get(count, f"all {count} schemes")
