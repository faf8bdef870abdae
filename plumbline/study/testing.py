"""Families of tests of pairs of rules over the same draws and documents, each with Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from plumbline.calibration_report.bootstrap import Resampled, holm
from plumbline.study.power import detectable, draws_needed
from plumbline.study.resampling import Components, components, crossed_bootstrap

Key = TypeVar("Key", bound=Hashable)
IDENTICAL: Mapping[str, Any] = {
    "verdict": "identical",
    **dict.fromkeys(("difference", "low", "high", "standard_error", "smallest_difference", "detectable"), 0.0),
    **dict.fromkeys(("p_value", "p_adjusted"), 1.0),
    "draws_needed": None,
    "variance": {"draws": 0.0, "documents": 0.0},
}
"""The result for two rules with equal KL in every draw, as under a scheme that reads no calibration data."""


@dataclass(frozen=True, eq=False)
class Family:
    """The data and parameters shared by all families of tests of a study."""

    strata: np.ndarray
    """int (D,), as of `crossed_bootstrap`."""
    tokens: int
    """Predicted tokens of all documents."""
    confidence: float
    resamples: int
    seed: int

    def test(self, pairs: Mapping[Key, tuple[np.ndarray, np.ndarray]]) -> dict[Key, dict[str, Any]]:
        """Test every pair (baseline, rival), each float64 (B, D), as one family.

        Returns:
            Per pair `verdict` on the rival (better, worse, no difference detected, identical; less is better), the
            relative `difference` with the ends `low` and `high` of its interval (None: open), `standard_error`,
            `p_value`, `p_adjusted`; `smallest_difference`, the smallest significant estimate; `detectable`, the
            smallest true difference with a power of 0.8; `draws_needed` for a power of 0.8 at the observed difference
            (None: no number is enough); and `variance`, the components of one draw and of the documents.
        """
        tested = {key: pair for key, pair in pairs.items() if not np.array_equal(*pair)}
        judged: dict[Key, dict[str, Any]] = {}
        if tested:
            results = crossed_bootstrap(list(tested.values()), self.strata, self.resamples, self.seed)
            adjusted = holm([result.p_value() for result in results])
            for (key, pair), result, p in zip(tested.items(), results, adjusted, strict=True):
                parts = components(*pair, self.strata)
                judged[key] = self._judged(result, p, parts, len(tested), len(pair[0]))
        return {key: judged.get(key, dict(IDENTICAL)) for key in pairs}

    def _judged(self, one: Resampled, p_adjusted: float, parts: Components, tested: int, draws: int) -> dict[str, Any]:
        alpha = 1 - self.confidence
        level = 1 - alpha / tested
        half, seen = one.half_width(1 - alpha), one.half_width(level)
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
            "detectable": detectable(one, level, draws),
            "draws_needed": draws_needed(parts, one.estimate, level) if one.estimate else None,
            "variance": {"draws": parts.draw, "documents": parts.document},
        }
