"""Everything that Dagster loads: the assets in the order the data flows, their checks, and the sensors."""

from __future__ import annotations

import dagster as dg

from assets.activation_stats.asset import activation_stats
from assets.calibration_choice.asset import calibration_choice
from assets.calibration_report.asset import calibration_report
from assets.calibration_set.asset import calibration_set
from assets.deployed_model.asset import deployed_model
from assets.evaluation.asset import evaluation
from assets.production_drift.asset import production_drift
from assets.quantized_model.asset import quantized_model
from assets.raw_corpus.asset import inbox, raw_corpus
from assets.sample_features.asset import sample_features
from assets.study.asset import study
from assets.tokenized_samples.asset import tokenized_samples
from orchestration.checks import CHECKS
from orchestration.sensors import JOBS, SENSORS

ASSETS: list[dg.AssetsDefinition] = [
    raw_corpus,
    tokenized_samples,
    sample_features,
    calibration_choice,
    calibration_set,
    activation_stats,
    quantized_model,
    evaluation,
    calibration_report,
    deployed_model,
    study,
]

defs = dg.Definitions(
    assets=[inbox, *ASSETS, production_drift],
    asset_checks=CHECKS,
    jobs=JOBS,
    sensors=SENSORS,
    executor=dg.in_process_executor,  # models stay loaded from step to step
)
