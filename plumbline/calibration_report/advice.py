"""What to use under each scheme, whether the difference matters in practice, and where KL and perplexity disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import expm1, inf
from typing import Any

from plumbline.calibration_report.study import Study
from plumbline.calibration_report.wording import CALLED, join, nats, percent, short_nats

PRACTICAL = 0.005
"""Nats per token below which a difference is too small to matter. On texts like those that the base model writes, a KL
of d nats raises perplexity by the factor e^d: this is half a percent. A judgement, not a law."""
WHY_THEY_DISAGREE = (
    "Perplexity looks only at the token that came next, and falls where a change happens to help on these texts; KL "
    "counts every change of the probabilities. The verdict goes by KL."
)


def advise(study: Study, comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per scheme: the choice to use, whether it matters in practice which one is used, and a sentence.

    `matters` is None where the documents are too few to say.
    """
    advice = []
    for scheme in study.schemes:
        compared = [c for c in comparisons if c["scheme"] == scheme]
        if compared:
            advice.append({"scheme": scheme, **_advice(study, scheme, compared)})
    return advice


def matters(c: Mapping[str, Any]) -> bool:
    """Whether a comparison found a difference that matters in practice."""
    return c["verdict"] in CALLED and abs(c.get("difference", inf)) >= PRACTICAL


def disagreements(study: Study, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Comparisons in which the model with the lower KL has the higher perplexity, the widest per scheme, and why."""
    texts = []
    for scheme in study.schemes:
        opposed = [pair for c in comparisons if c["scheme"] == scheme and (pair := _opposed(study, c))]
        if opposed:
            texts.append(max(opposed, key=lambda pair: pair[0])[1])
    return [*texts, WHY_THEY_DISAGREE] if texts else []


def _opposed(study: Study, c: Mapping[str, Any]) -> tuple[float, str] | None:
    """The relative difference in perplexity and the sentence, if it points the other way than that in KL, and the page
    shows two different KLs and perplexities."""
    ours, theirs = (
        study.metrics[choice, c["scheme"]].get("perplexity_quantized") for choice in (c["choice"], c["baseline"])
    )
    if ours is None or theirs is None or (ours - theirs) * (c["kl_mean"] - c["kl_mean_baseline"]) >= 0:
        return None
    kls = nats(c["kl_mean"]), nats(c["kl_mean_baseline"])
    perplexities = f"{ours:.2f}", f"{theirs:.2f}"
    if kls[0] == kls[1] or perplexities[0] == perplexities[1]:
        return None
    more = "lower" if c["kl_mean"] < c["kl_mean_baseline"] else "higher"
    text = (
        f"{c['scheme']}: KL and perplexity disagree on {c['choice']}: its KL is {more} than that of {c['baseline']} "
        f"({' and '.join(kls)}), its perplexity {_other(more)} ({' and '.join(perplexities)})"
    )
    chance = c["verdict"] == "no difference detected"
    return abs(ours / theirs - 1), text + ("; the difference in KL may be chance." if chance else ".")


def _other(more: str) -> str:
    return "higher" if more == "lower" else "lower"


def _advice(study: Study, scheme: str, compared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    baseline = compared[0]["baseline"]
    verdicts = {c["verdict"] for c in compared}
    if verdicts == {"identical"}:
        return _said(None, False, f"{scheme}: any of the choices will do, as all give the same weights.")
    if "too few documents" in verdicts:
        return _said(baseline, None, f"{scheme}: keep {baseline}, as there are too few documents to tell them apart.")
    better, worse = ([c for c in compared if c["verdict"] == word] for word in ("better", "worse"))
    avoid = f"{join([c['choice'] for c in worse])} {'is' if len(worse) == 1 else 'are'} worse. " if worse else ""
    if worse:
        avoid += _size(study, max(worse, key=lambda c: float(c["kl_mean"])))
    if better:
        best = min(better, key=lambda c: float(c["kl_mean"]))
        text = f"{scheme}: use {best['choice']}. {_size(study, best)}." + (f" {avoid}." if worse else "")
        return _said(best["choice"], any(map(matters, (best, *worse))), text)
    text = f"{scheme}: use {baseline}, as no other choice is better"
    if worse:
        text += f"; {avoid}"
    else:
        text += _missed([c["smallest_difference"] for c in compared if c["verdict"] == "no difference detected"])
    return _said(baseline, any(map(matters, worse)), text + ".")


def _said(use: str | None, matters: bool | None, sentence: str) -> dict[str, Any]:
    return {"use": use, "matters": matters, "sentence": sentence}


def _size(study: Study, c: Mapping[str, Any]) -> str:
    """How large a difference is, in nats, perplexity and next tokens, and whether that matters."""
    size = abs(c["difference"])
    text = f"The difference from {c['baseline']} is {short_nats(size)} nats per token"
    if size < PRACTICAL:
        text += f": real, but under {PRACTICAL:g}, half a percent of perplexity, and too small to matter in practice"
    else:
        text += f", as much as {percent(expm1(size))} of perplexity: it matters in practice"
    ours, theirs = (study.metrics[choice, c["scheme"]].get("top1_agreement") for choice in (c["choice"], c["baseline"]))
    if ours is not None and theirs is not None:
        text += f" (same next token as the base model: {100 * ours:.1f} % against {100 * theirs:.1f} %)"
    return text


def _missed(smallest: Sequence[float | None]) -> str:
    """What a comparison that found nothing can have missed."""
    if not smallest or any(value is None for value in smallest):
        return ""
    largest = max(value for value in smallest if value is not None)
    if largest < PRACTICAL:
        return f"; a difference that was missed is under {short_nats(largest)} nats per token, too small to matter"
    return (
        f"; a difference of up to {short_nats(largest)} nats per token may have been missed, which would matter: "
        "evaluate on more documents (evaluation.tokens_per_domain) if it is worth knowing"
    )
