"""The Dagster definitions: assets in the order of the data flow, checks, jobs, schedules, sensors and resources."""

from __future__ import annotations

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_choice import calibration_choice
from assets.calibration_report import calibration_report
from assets.calibration_set import calibration_set
from assets.deployed_model import deployed_model
from assets.evaluation import evaluation
from assets.production_drift import production_drift
from assets.quantized_model import quantized_model
from assets.raw_corpus import inbox, raw_corpus
from assets.sample_features import sample_features
from assets.sample_page import sample_page
from assets.study import study
from assets.tokenized_samples import tokenized_samples
from orchestration.checks import CHECKS
from orchestration.jobs import JOBS
from orchestration.resources import RESOURCES
from orchestration.schedules import SCHEDULES
from orchestration.sensors import SENSORS
from plumbline.cli.guarded_dagster import warn_if_unguarded
from plumbline.graph.code_links import with_code_links

ASSETS: list[dg.AssetsDefinition] = [
    raw_corpus,
    tokenized_samples,
    sample_features,
    calibration_choice,
    calibration_set,
    activation_stats,
    sample_page,
    quantized_model,
    evaluation,
    calibration_report,
    deployed_model,
    study,
]

warn_if_unguarded()
defs = dg.Definitions(
    assets=with_code_links([inbox, *ASSETS, production_drift]),
    asset_checks=CHECKS,
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources=RESOURCES,
    executor=dg.in_process_executor,  # models stay loaded from step to step
)
