"""The verdict: which calibration choices differ significantly from the baseline."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from plumbline.calibration_report.advice import advise, disagreements, matters
from plumbline.calibration_report.bootstrap import Resampled, bootstrap_ratio, holm, strata_of
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.study import Study
from plumbline.calibration_report.wording import headline, sentences

FEWEST_DOCUMENTS = 8
"""Fewest documents with which intervals have their nominal coverage (measured in tests)."""
CAVEAT = (
    "Each choice was drawn once, so this compares these sets of texts, not the rules that drew them: another draw by "
    "the same rule can come out differently."
)

Verdict = Literal["better", "worse", "no difference detected", "identical", "too few documents"]


def judge(study: Study, params: ReportParams) -> dict[str, Any]:
    """Compare every choice with the baseline, scheme by scheme, by mean KL per token over the same documents.

    The test is paired: the differences per document are resampled within each domain. A difference is reported only if
    it is significant with Holm's correction for all comparisons. Choices with the same weights are not tested.

    Returns:
        The content of verdict.json: `comparisons` (one per scheme and choice: verdict, difference with interval in nats
        per token and relative to the baseline, p-values, the smallest significant difference), `estimates` (mean KL
        with interval per pair), `advice` (per scheme: what to use, and whether it matters), `sentences`,
        `disagreements` of KL and perplexity, `caveat`, the parameters and how much was evaluated.

    Raises:
        ValueError: the baseline is not in the grid, or there are too few resamples for so many comparisons.
    """
    baseline = params.baseline or study.calibrations[0]
    if baseline not in study.calibrations:
        raise ValueError(f"report.baseline: {baseline!r} is not in grid.calibrations ({', '.join(study.calibrations)})")
    compared = [(choice, scheme) for scheme in study.schemes for choice in study.calibrations if choice != baseline]
    enough = len(study.tokens) >= FEWEST_DOCUMENTS
    tested = [pair for pair in compared if enough and not study.identical(pair[1], pair[0], baseline)]
    means, differences = _resample(study, baseline, tested, params) if enough else ({}, {})
    adjusted = dict(zip(tested, holm([differences[pair].p_value() for pair in tested]), strict=True))
    comparisons = []
    for choice, scheme in compared:
        ours, theirs = _mean(study, choice, scheme), _mean(study, baseline, scheme)
        comparison = {
            "scheme": scheme,
            "choice": choice,
            "baseline": baseline,
            "kl_mean": ours,
            "kl_mean_baseline": theirs,
        }
        if study.identical(scheme, choice, baseline):
            comparison |= {"verdict": "identical", "difference": 0.0}
        elif (choice, scheme) in differences:
            difference = differences[choice, scheme]
            comparison |= _judged(difference, adjusted[choice, scheme], 1 - params.confidence, len(tested), theirs)
        else:
            comparison |= {"verdict": "too few documents", "difference": ours - theirs}
        comparisons.append(comparison)
    estimates = {}
    for choice, scheme in ((c, s) for s in study.schemes for c in study.calibrations):
        mean = _mean(study, choice, scheme)
        half = means[choice, scheme].half_width(params.confidence) if enough else None
        estimates[f"{choice}-{scheme}"] = {"kl_mean": mean, **_interval(mean, half)}
    return {
        "baseline": baseline,
        "confidence": params.confidence,
        "resamples": params.resamples,
        "seed": params.seed,
        "documents": len(study.tokens),
        "tokens": int(study.tokens.sum()),
        "comparisons_tested": len(tested),
        "headline": headline(comparisons, study.schemes, matters),
        "advice": advise(study, comparisons),
        "sentences": sentences(comparisons, params.confidence),
        "disagreements": disagreements(study, comparisons),
        "caveat": CAVEAT,
        "comparisons": comparisons,
        "estimates": estimates,
    }


def _resample(
    study: Study, baseline: str, tested: list[tuple[str, str]], params: ReportParams
) -> tuple[dict[tuple[str, str], Resampled], dict[tuple[str, str], Resampled]]:
    """Mean KL of every pair, and its difference from the baseline for those `tested`, over the same resamples."""
    _enough_resamples(params, len(tested))
    rows = [*study.kl.values(), *(study.kl[c, scheme] - study.kl[baseline, scheme] for c, scheme in tested)]
    strata = strata_of(study.domains, FEWEST_DOCUMENTS)
    ratios = bootstrap_ratio(np.stack(rows), study.tokens, strata, params.resamples, params.seed)
    return dict(zip(study.kl, ratios, strict=False)), dict(zip(tested, ratios[len(study.kl) :], strict=True))


def _judged(one: Resampled, p_adjusted: float, alpha: float, tested: int, reference: float) -> dict[str, Any]:
    half = one.half_width(1 - alpha)
    seen = one.half_width(1 - alpha / tested)  # Holm's level for the smallest p-value
    called = p_adjusted <= alpha
    verdict: Verdict = "no difference detected"
    if called:
        verdict = "better" if one.estimate < 0 else "worse"
    judgement: dict[str, Any] = {
        "verdict": verdict,
        "difference": one.estimate,
        **_interval(one.estimate, half),
        "standard_error": one.standard_error,
        "p_value": one.p_value(),
        "p_adjusted": p_adjusted,
        "smallest_difference": _finite(seen),
    }
    relative = {key: judgement[key] for key in ("difference", "low", "high", "smallest_difference")}
    if reference > 0:
        judgement["relative"] = {key: None if value is None else value / reference for key, value in relative.items()}
    return judgement


def _interval(centre: float, half: float | None) -> dict[str, float | None]:
    if half is None or not np.isfinite(half):
        return {"low": None, "high": None}
    return {"low": centre - half, "high": centre + half}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean(study: Study, choice: str, scheme: str) -> float:
    return float(study.kl[choice, scheme].sum() / study.tokens.sum())


def _enough_resamples(params: ReportParams, tested: int) -> None:
    needed = int(np.ceil(tested / (1 - params.confidence)))
    if params.resamples < needed:
        raise ValueError(
            f"report.resamples: found {params.resamples}, too few to find any of {tested} comparisons different at "
            f"{100 * params.confidence:.0f} %; expected at least {needed} (2000 or ten times that is better)"
        )
