"""The verdict of a study: rules against the baseline, controls, sizes and representativeness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from plumbline.calibration_report.bootstrap import strata_of
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.correlation import correlate
from plumbline.study.domains import by_domain
from plumbline.study.draws import Cell
from plumbline.study.measuring import UNCALIBRATED
from plumbline.study.params import CONTROLS, RTN, StudyParams
from plumbline.study.resampling import spread_ratio
from plumbline.study.result_cache import Documents, Measured
from plumbline.study.size_curve import recommendations, size_curve
from plumbline.study.testing import Family
from plumbline.study.wording import CAVEATS, headline, on_controls, sentence, sentences

FEWEST_DOCUMENTS = 8
Results = Mapping[tuple[Cell, str], Measured]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The measurements of a study."""

    results: Results
    documents: Documents
    width: int
    """Input channels of the widest quantized layer."""
    absent: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """(control, n) -> reason why it was not measured."""
    distances: Mapping[int, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """The result of `measure_distances`."""
    without_distances: str | None = None

    @property
    def tokens(self) -> int:
        return int(self.documents.tokens.sum())

    def kl(self, scheme: str, n: int, rule: str, draws: int) -> np.ndarray:
        """float64 (draws, documents): KL summed over a document's tokens."""
        if rule == RTN:  # one model, whatever the draw
            kl = self.results[UNCALIBRATED, scheme].kl
            return np.broadcast_to(kl, (draws, len(kl)))
        return np.stack([self.results[Cell(draw, n, rule), scheme].kl for draw in range(draws)])


def judge(evidence: Evidence, params: StudyParams, schemes: Mapping[str, SchemeParams]) -> dict[str, Any]:
    """Compare every rule with the baseline rule, at every size and under every scheme, by mean KL per token.

    Three families of tests, each with Holm's correction: the rules against the baseline, which are the study's claims;
    the controls against the baseline, which show whether the study can detect a difference (they nearly always differ,
    so in the family of the claims they would only make those harder to detect); and the baseline's sizes against the
    largest.

    Returns:
        The content of verdict.json without digests: `headline`, `sentences`, `comparisons`, `controls` (both with the
        results of `Family.test`, means, every draw's difference and a sentence), `absent_controls`, `arms` (mean and
        spread of KL per rule, size and scheme, with every draw's value), `by_domain`, `size_curve`, `recommendations`,
        `representativeness`, `cost`, the parameters and how much was evaluated.

    Raises:
        ValueError: too few documents, or too few resamples for so many comparisons.
    """
    _require_enough(evidence, params, schemes)
    strata = strata_of(evidence.documents.domains, FEWEST_DOCUMENTS)
    family = Family(strata, evidence.tokens, params.confidence, params.resamples, params.seed)
    grid = [(scheme, n) for scheme in schemes for n in params.sizes]
    comparisons = _compare(evidence, params, family, [(*at, rule) for rule in params.rivals for at in grid])
    controls = _compare(evidence, params, family, _controls(evidence, grid))
    curves = _size_curve(evidence, params, family, list(schemes))
    return {
        "headline": headline(comparisons, params.baseline, params.draws),
        "sentences": sentences(comparisons),
        "on_controls": on_controls(controls, list(schemes)),
        "caveats": CAVEATS,
        "comparisons": comparisons,
        "comparisons_tested": sum(c["verdict"] != "identical" for c in comparisons),
        "controls": controls,
        "absent_controls": [{"control": name, "n": n, "why": why} for (name, n), why in evidence.absent.items()],
        "meaning_of_controls": CONTROLS,
        "arms": [_arm(evidence, params, *at, rule) for at in grid for rule in params.rules],
        "by_domain": by_domain(
            evidence.documents,
            lambda scheme, n, rule: evidence.kl(scheme, n, rule, params.draws),
            grid,
            params.baseline,
            list(params.rules),
        ),
        "size_curve": curves,
        "recommendations": recommendations(curves, comparisons, schemes),
        "representativeness": _representativeness(evidence, params, list(schemes)),
        **_conditions(evidence, params, list(schemes)),
        "cost": _cost(evidence),
    }


def _size_curve(evidence: Evidence, params: StudyParams, family: Family, schemes: list[str]) -> list[dict[str, Any]]:
    results = {
        (scheme, n): [evidence.results[Cell(draw, n, params.baseline), scheme] for draw in range(params.draws)]
        for scheme in schemes
        for n in params.all_sizes
    }
    return size_curve(results, family, schemes, evidence.width)


def _conditions(evidence: Evidence, params: StudyParams, schemes: list[str]) -> dict[str, Any]:
    """The study's parameters, and how much was evaluated."""
    return {
        "baseline": params.baseline,
        "rules": {name: rule.model_dump(mode="json") for name, rule in params.rules.items()},
        "sizes": list(params.sizes),
        "schemes": schemes,
        "draws": params.draws,
        "share": params.share,
        "seed": params.seed,
        "confidence": params.confidence,
        "resamples": params.resamples,
        "documents": len(evidence.documents.names),
        "tokens": evidence.tokens,
        "widest_layer": evidence.width,
    }


def _cost(evidence: Evidence) -> dict[str, int]:
    """The cost of the study in units that do not depend on the machine: sets read, models, tokens."""
    sets = {cell: one for (cell, _), one in evidence.results.items() if cell != UNCALIBRATED}
    return {
        "sets": len(sets),
        "samples": sum(one.samples for one in sets.values()),
        "tokens": sum(one.tokens for one in sets.values()),
        "models": len(evidence.results),
        "evaluated_tokens": len(evidence.results) * evidence.tokens,
    }


def _require_enough(evidence: Evidence, params: StudyParams, schemes: Mapping[str, SchemeParams]) -> None:
    count = len(evidence.documents.names)
    if count < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{count} held-out documents are too few to compare rules; expected {FEWEST_DOCUMENTS} or more: raise the "
            "study's tokens_per_domain or tokenize.splits.report in params.yaml"
        )
    cells = len(schemes) * len(params.sizes)
    tests = max(len(params.rivals) * cells, len(CONTROLS) * cells, len(schemes) * (len(params.all_sizes) - 1))
    needed = int(np.ceil(tests / (1 - params.confidence)))
    if params.resamples < needed:
        raise ValueError(
            f"studies, resamples: found {params.resamples}, too few to find any of {tests} comparisons different at "
            f"{100 * params.confidence:.0f} %; expected at least {needed} (ten times that is better)"
        )


def _controls(evidence: Evidence, grid: list[tuple[str, int]]) -> list[tuple[str, int, str]]:
    compared = []
    for name in CONTROLS:
        for scheme, n in grid:
            there = (UNCALIBRATED, scheme) in evidence.results if name == RTN else (name, n) not in evidence.absent
            if there:
                compared.append((scheme, n, name))
    return compared


def _compare(
    evidence: Evidence, params: StudyParams, family: Family, compared: list[tuple[str, int, str]]
) -> list[dict[str, Any]]:
    pairs = {
        (scheme, n, rule): (
            evidence.kl(scheme, n, params.baseline, params.draws),
            evidence.kl(scheme, n, rule, params.draws),
        )
        for scheme, n, rule in compared
    }
    judged = family.test(pairs)
    rows = []
    for (scheme, n, rule), pair in pairs.items():
        means = [values.sum(axis=1) / family.tokens for values in pair]
        spread = spread_ratio(means[0], means[1], params.confidence)
        one = {
            "scheme": scheme,
            "n": n,
            "rule": rule,
            "baseline": params.baseline,
            "kl_mean": float(means[1].mean()),
            "kl_mean_baseline": float(means[0].mean()),
            **judged[scheme, n, rule],
            "draws": [float(value) for value in means[1] / means[0] - 1],
            "spread_ratio": None if spread is None else asdict(spread),
        }
        rows.append({**one, "sentence": sentence(one, params.confidence)})
    return rows


def _representativeness(evidence: Evidence, params: StudyParams, schemes: list[str]) -> dict[str, Any]:
    if not evidence.distances or params.random_rule is None:
        return {"why_not": evidence.without_distances or "not asked for", "by_scheme": []}
    sets = max(params.draws, params.random_sets)
    kl = {
        (scheme, n): evidence.kl(scheme, n, params.random_rule, sets).sum(axis=1) / evidence.tokens
        for scheme in schemes
        for n in params.sizes
    }
    answers = correlate(evidence.distances, kl, schemes, params.confidence, params.resamples, params.seed)
    return {"why_not": None, "by_scheme": answers}


def _arm(evidence: Evidence, params: StudyParams, scheme: str, n: int, rule: str) -> dict[str, Any]:
    drawn = [evidence.results[Cell(draw, n, rule), scheme] for draw in range(params.draws)]
    kl = np.array([one.kl.sum() / evidence.tokens for one in drawn])
    return {
        "scheme": scheme,
        "n": n,
        "rule": rule,
        "kl_mean": float(kl.mean()),
        "kl_sd": float(kl.std(ddof=1)),
        "top1_agreement": sum(one.agree for one in drawn) / (evidence.tokens * len(drawn)),
        "calibration_tokens": round(sum(one.tokens for one in drawn) / len(drawn)),
        "fallbacks": sum(one.fallbacks for one in drawn),
        "draws": [
            {"draw": draw, "kl_mean": float(value), "samples": one.samples, "tokens": one.tokens, "set": one.set_digest}
            for draw, (value, one) in enumerate(zip(kl, drawn, strict=True))
        ],
    }
