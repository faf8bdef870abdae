"""Which rules differ from the baseline rule, how sure that is, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from assets.calibration_report.bootstrap import Resampled, holm, strata_of
from assets.calibration_report.wording import join, percent
from assets.study.draws import Cell
from assets.study.kept import Documents, Measured
from assets.study.params import StudyParams
from assets.study.resampling import crossed_bootstrap, spread_ratio

FEWEST_DOCUMENTS = 8
CALLED = ("better", "worse")
IDENTICAL = {
    "verdict": "identical",
    **dict.fromkeys(("difference", "low", "high", "standard_error", "smallest_difference"), 0.0),
    **dict.fromkeys(("p_value", "p_adjusted"), 1.0),
}
"""Two rules whose models answer alike in every draw: a scheme that reads no calibration data, for one."""
CAVEATS = [
    "This is about one base model and one pool: the draws choose from overlapping parts of that pool, so they say how "
    "much another draw from it would change, and nothing about other texts.",
    "KL says how much a model changed, not whether its answers became worse at some task.",
]


def judge(
    found: Mapping[tuple[Cell, str], Measured], documents: Documents, params: StudyParams, schemes: Sequence[str]
) -> dict[str, Any]:
    """Compare every rule with the baseline rule, at every size and under every scheme, by mean KL per token.

    The family of tests is all of these; a difference is called only if it survives Holm's correction for the family.

    Returns:
        The content of verdict.json: `comparisons` (verdict, relative difference with interval, p-values, the
        smallest difference that would have been called, the ratio of spreads), `arms` (mean and spread of KL per rule,
        size and scheme, with every draw's value), `headline`, `sentences`, and what it rests on.

    Raises:
        ValueError: too few documents, or too few resamples for so many comparisons.
    """
    if len(documents.names) < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{len(documents.names)} held-out documents are too few to compare rules; expected {FEWEST_DOCUMENTS} or "
            "more: raise the study's tokens_per_domain or tokenize.splits.report in params.yaml"
        )
    compared = [(scheme, n, rule) for rule in params.rivals for scheme in schemes for n in params.sizes]
    needed = int(np.ceil(len(compared) / (1 - params.confidence)))
    if params.resamples < needed:
        raise ValueError(
            f"studies, resamples: found {params.resamples}, which cannot call any of {len(compared)} comparisons "
            f"different at {params.confidence:.0%}; expected at least {needed} (ten times that is better)"
        )
    kl = {
        (scheme, n, rule): np.stack([found[Cell(draw, n, rule), scheme].kl for draw in range(params.draws)])
        for scheme in schemes
        for n in params.sizes
        for rule in params.rules
    }
    pairs = {(scheme, n, rule): (kl[scheme, n, params.baseline], kl[scheme, n, rule]) for scheme, n, rule in compared}
    tested = [key for key, (baseline, rival) in pairs.items() if not np.array_equal(baseline, rival)]
    judged = _test([pairs[key] for key in tested], documents, params)
    found_of = dict(zip(tested, judged, strict=True))
    tokens = int(documents.tokens.sum())
    comparisons = []
    for (scheme, n, rule), pair in pairs.items():
        means = [values.sum(axis=1) / tokens for values in pair]
        spread = spread_ratio(means[0], means[1], params.confidence)
        comparisons.append(
            {
                "scheme": scheme,
                "n": n,
                "rule": rule,
                "baseline": params.baseline,
                "kl_mean": float(means[1].mean()),
                "kl_mean_baseline": float(means[0].mean()),
                **found_of.get((scheme, n, rule), IDENTICAL),
                "draws": [float(value) for value in means[1] / means[0] - 1],
                "spread_ratio": None if spread is None else asdict(spread),
            }
        )
    return {
        "baseline": params.baseline,
        "rules": {name: rule.model_dump(mode="json") for name, rule in params.rules.items()},
        "sizes": list(params.sizes),
        "schemes": list(schemes),
        "draws": params.draws,
        "share": params.share,
        "seed": params.seed,
        "confidence": params.confidence,
        "resamples": params.resamples,
        "documents": len(documents.names),
        "tokens": tokens,
        "comparisons_tested": len(tested),
        "headline": headline(comparisons, params.baseline, params.draws),
        "sentences": sentences(comparisons, params.confidence),
        "caveats": CAVEATS,
        "comparisons": comparisons,
        "arms": [_arm(found, params, scheme, n, rule, tokens) for scheme, n, rule in kl],
    }


def _test(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], documents: Documents, params: StudyParams
) -> list[dict[str, Any]]:
    if not pairs:
        return []
    strata = strata_of(documents.domains, FEWEST_DOCUMENTS)
    results = crossed_bootstrap(pairs, strata, params.resamples, params.seed)
    adjusted = holm([result.p_value() for result in results])
    alpha = 1 - params.confidence
    return [_judged(result, p, alpha, len(pairs)) for result, p in zip(results, adjusted, strict=True)]


def _judged(one: Resampled, p_adjusted: float, alpha: float, tested: int) -> dict[str, Any]:
    half, seen = one.half_width(1 - alpha), one.half_width(1 - alpha / tested)
    verdict = "no difference detected"
    if p_adjusted <= alpha:
        verdict = "better" if one.estimate < 0 else "worse"
    ends = (one.estimate - half, one.estimate + half) if np.isfinite(half) else (None, None)
    return {
        "verdict": verdict,
        "difference": one.estimate,
        "low": ends[0],
        "high": ends[1],
        "standard_error": one.standard_error,
        "p_value": one.p_value(),
        "p_adjusted": p_adjusted,
        "smallest_difference": seen if np.isfinite(seen) else None,
    }


def _arm(
    found: Mapping[tuple[Cell, str], Measured], params: StudyParams, scheme: str, n: int, rule: str, tokens: int
) -> dict[str, Any]:
    drawn = [found[Cell(draw, n, rule), scheme] for draw in range(params.draws)]
    kl = np.array([one.kl.sum() / tokens for one in drawn])
    return {
        "scheme": scheme,
        "n": n,
        "rule": rule,
        "kl_mean": float(kl.mean()),
        "kl_sd": float(kl.std(ddof=1)),
        "top1_agreement": sum(one.agree for one in drawn) / (tokens * len(drawn)),
        "calibration_tokens": round(sum(one.tokens for one in drawn) / len(drawn)),
        "fallbacks": sum(one.fallbacks for one in drawn),
        "draws": [
            {"draw": draw, "kl_mean": float(value), "samples": one.samples, "tokens": one.tokens, "set": one.set_digest}
            for draw, (value, one) in enumerate(zip(kl, drawn, strict=True))
        ],
    }


def headline(comparisons: Sequence[Mapping[str, Any]], baseline: str, draws: int) -> str:
    """One sentence per rule over all sizes and schemes."""
    said = []
    for rule in dict.fromkeys(c["rule"] for c in comparisons):
        of = [c for c in comparisons if c["rule"] == rule]
        counts = {verdict: sum(c["verdict"] == verdict for c in of) for verdict in CALLED}
        if not any(counts.values()):
            said.append(f"No difference between {rule} and {baseline} was detected over {draws} paired draws.")
            continue
        parts = [f"{verdict} in {counts[verdict]}" for verdict in CALLED if counts[verdict]]
        said.append(f"{rule} is {' and '.join(parts)} of {len(of)} comparisons with {baseline}.")
    return " ".join(said)


def sentences(comparisons: Sequence[Mapping[str, Any]], confidence: float) -> list[str]:
    """What was found, comparison by comparison: differences first, the largest of them on top."""
    called = sorted((c for c in comparisons if c["verdict"] in CALLED), key=lambda c: -abs(c["difference"]))
    rest = [c for c in comparisons if c["verdict"] == "no difference detected"]
    same = [c for c in comparisons if c["verdict"] == "identical"]
    return [
        *(_called(c, confidence) for c in called),
        *(_not_called(c) for c in rest),
        *(f"{c['scheme']}, n = {c['n']}: {c['rule']} and {c['baseline']} give identical models." for c in same),
        *_spreads(comparisons),
    ]


def _called(c: Mapping[str, Any], confidence: float) -> str:
    more = "lower" if c["verdict"] == "better" else "higher"
    text = (
        f"{c['scheme']}, n = {c['n']}: {c['rule']} is {c['verdict']} than {c['baseline']}: over the draws, divergence "
        f"from the base model is {percent(abs(c['difference']))} {more}"
    )
    if c["low"] is not None:
        ends = sorted((c["low"], c["high"]), key=abs)
        text += f" ({100 * confidence:g} % interval {percent(abs(ends[0]))} to {percent(abs(ends[1]))})"
    return text + "."


def _not_called(c: Mapping[str, Any]) -> str:
    text = (
        f"{c['scheme']}, n = {c['n']}: no difference detected between {c['rule']} and {c['baseline']} "
        f"({signed(c['difference'])})"
    )
    if c["smallest_difference"] is None:
        return text + "; the draws are too alike to say how small a difference would have been seen."
    return f"{text}; could have seen {percent(c['smallest_difference'])} or more."


def _spreads(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a rule's draws vary less or more than the baseline's, beyond chance; each interval by itself."""
    said = []
    for rule in dict.fromkeys(c["rule"] for c in comparisons):
        of = [c for c in comparisons if c["rule"] == rule and c["spread_ratio"] is not None]
        for word, kept in (
            ("less", [c for c in of if c["spread_ratio"]["high"] < 1]),
            ("more", [c for c in of if c["spread_ratio"]["low"] > 1]),
        ):
            if kept:
                where = join([f"{c['scheme']} at n = {c['n']}" for c in kept])
                said.append(
                    f"{rule} varies {word} from draw to draw than {of[0]['baseline']} under {where} "
                    f"(each looked at by itself, {len(of)} looked at)."
                )
    return said


def signed(share: float) -> str:
    """0.012 -> "+1.2 %"."""
    return ("+" if share > 0 else "−" if share < 0 else "±") + percent(abs(share))
