"""A judgement in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.calibration_report.wording import join, percent, signed

BASE_ALIKE = "gives the base model's probabilities, bit for bit"


def headline(models: Sequence[Mapping[str, Any]], against: str | None) -> str:
    """One sentence on all checkpoints."""
    if against is None:
        return sentence(models[0], None)
    rivals = [model for model in models if model["name"] != against]
    if len(rivals) == 1:
        return sentence(rivals[0], against)
    by_verdict: dict[str, list[str]] = {}
    for model in rivals:
        by_verdict.setdefault(model["verdicts"]["against"]["verdict"], []).append(model["name"])
    parts = []
    for verdict, words in (
        ("better", "closer to the base model"),
        ("worse", "farther from the base model"),
        ("no difference detected", "not seen to differ"),
        ("identical", "the same, bit for bit"),
        ("too few documents", "on too few documents to tell"),
    ):
        if names := by_verdict.get(verdict):
            parts.append(f"{join(names)} {'is' if len(names) == 1 else 'are'} {words}")
    return f"Against {against}: {'; '.join(parts)}."


def sentences(models: Sequence[Mapping[str, Any]], against: str | None) -> list[str]:
    """A sentence per comparison with `against`, then one per checkpoint on its distance from the base model."""
    compared = [sentence(model, against) for model in models if against is not None and model["name"] != against]
    return [*compared, *(sentence(model, None) for model in models)]


def sentence(model: Mapping[str, Any], against: str | None) -> str:
    """What may be said of one checkpoint: against another one, or against the base model."""
    if against is None:
        return _of_base(model)
    verdict = model["verdicts"]["against"]
    name, relative = model["name"], verdict["relative"]
    kl = f"{model['kl_mean']:.3g} nats per token instead of {model['kl_mean'] - verdict['mean']:.3g}"
    if verdict["verdict"] == "identical":
        return f"{name} and {against} give the same divergence on every document."
    if verdict["verdict"] == "too few documents":
        return f"{name} has {kl} of {against}: too few documents to say whether that is chance; give more texts."
    if verdict["verdict"] == "no difference detected":
        return f"No difference detected between {name} and {against}: {kl}{_by(relative)}."
    closer = "closer to" if verdict["verdict"] == "better" else "farther from"
    return f"{name} is {closer} the base model than {against}: its divergence is {kl}{_by(relative)}."


def _by(relative: Mapping[str, Any] | None) -> str:
    """A relative difference with its interval, as a clause."""
    if relative is None:
        return ""
    if relative["mean"] >= 1:
        return f", {1 + relative['mean']:.1f} times as much"
    more = "lower" if relative["mean"] < 0 else "higher"
    return f", {percent(abs(relative['mean']))} {more}{_ends(relative)}"


def _of_base(model: Mapping[str, Any]) -> str:
    kl, change = model["verdicts"]["kl"], model["verdicts"]["perplexity"]
    if change["verdict"] == "identical" and kl["mean"] == 0:
        return f"{model['name']} {BASE_ALIKE}."
    interval = f" ({max(kl['low'], 0):.3g} to {kl['high']:.3g})" if kl["low"] is not None else ""
    text = f"{model['name']} is {kl['mean']:.3g} nats per token from the base model{interval}; "
    if change["verdict"] in ("better", "worse"):
        more = "higher" if change["verdict"] == "worse" else "lower"
        text += f"its perplexity is {percent(abs(change['mean']))} {more}{_ends(change)}"
    elif change["verdict"] == "too few documents":
        text += (
            f"its perplexity changes by {signed(change['mean'])}, on too few documents to say whether that is chance"
        )
    else:
        text += f"no change of its perplexity was detected{_ends(change)}"
    return f"{text}; another next token is most probable in {percent(1 - model['top1_agreement'])} of places."


def _ends(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["low"] is None:
        return ""
    return f" ({signed(interval['low'])} to {signed(interval['high'])})"
