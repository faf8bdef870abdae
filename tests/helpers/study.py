"""A small study over a tiny model, and simulated results whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.activation_stats.params import StatisticsParams
from plumbline.calibration_set.pool import Sources
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.kv_cache_params import CacheParams
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.build import build_study
from plumbline.study.params import StudyParams
from plumbline.study.summary import summary

VOCABULARY = 96
SCHEMES = {
    "w4": SchemeParams(method="gptq", weight_bits=4, group_size=16),
    "w8a8": SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams(range="mse")),
    "kv8": SchemeParams(method="rtn", weight_bits=8, kv_cache=CacheParams(range="percentile", percentile=90)),
}
RULES = {"random": {"strategy": "random"}, "lengths": {"strategy": "length_stratified", "quotas": "equal"}}
SETTINGS = StatisticsParams()


@dataclass(frozen=True)
class Small:
    """What a study reads, and how to run one."""

    sources: Sources
    root: Path

    def params(self, **changed: Any) -> StudyParams:
        asked = {"rules": RULES, "sizes": [2, 5], "draws": 5, "schemes": ["w4", "w8a8"], "resamples": 400}
        asked |= {"random_sets": 0, "tokens_per_domain": 140}
        return StudyParams.model_validate({**asked, **changed})

    def run(self, out: Path, scratch: Path, settings: StatisticsParams = SETTINGS, **changed: Any) -> dict[str, Any]:
        out.mkdir(parents=True)
        params = self.params(**changed)
        schemes = {name: SCHEMES[name] for name in params.schemes}
        build_study(params, schemes, settings, self.sources, scratch, {"code": "1"}, out)
        return summary(out)


def simulated_study(
    rng: np.random.Generator, draws: int, documents: int, sd_draw: float, sd_document: float, sd_both: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Baseline, rival, strata. The two rules do not differ: in one stratum the rival is 3 % better, in the other worse,
    and the draws, the documents and the two together move it by the standard deviations given."""
    strata = np.arange(documents) % 2
    tokens = np.minimum(1024, np.exp(rng.normal(6.3, 0.9, documents))).clip(20)
    level = tokens * np.exp(0.4 * rng.standard_normal(documents)) * 0.05
    part = 1 + 0.03 * rng.standard_normal((draws, 1))  # the sub-pool, which both rules share

    def chance() -> np.ndarray:
        each = rng.standard_t(5, (draws, documents))
        return sd_draw * rng.standard_normal((draws, 1)) + sd_both * each

    of_document = sd_document * rng.standard_t(5, documents) + np.where(strata == 0, 0.03, -0.03)
    return level * (part + chance()), level * (part + chance() + of_document), strata
