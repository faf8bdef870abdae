"""Jobs: selections of assets that are launched by name."""

from typing import Any

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_choice import calibration_choice
from assets.calibration_report import calibration_report
from assets.calibration_set import calibration_set
from assets.deployed_model import deployed_model
from assets.evaluation import evaluation
from assets.production_drift import production_drift
from assets.quantized_model import quantized_model
from assets.raw_corpus import raw_corpus
from assets.sample_features import sample_features
from assets.sample_page import sample_page
from assets.study import study
from assets.tokenized_samples import tokenized_samples
from orchestration.checks import served_as_simulated
from plumbline.graph.sensor_ticks import STUDY_JOB
from plumbline.graph.update_job import update_job

EVERYTHING = update_job(
    "everything",
    [],
    "Brings every asset and partition that is out of date up to date, upstream first, as `plumbline run` does.",
)
CALIBRATION = update_job(
    "calibration",
    [calibration_choice, calibration_set],
    "Group 2_calibration: chooses the calibration sets that are out of date.",
)
MODEL = update_job(
    "model",
    [activation_stats, sample_page, quantized_model],
    "Group 3_model: collects statistics and quantizes what is out of date.",
)
VERDICT = update_job(
    "verdict",
    [evaluation, calibration_report, deployed_model],
    "Group 4_verdict: evaluates what is out of date, compares, and promotes the winner. A study runs on request.",
)
# Selection objects, because string selections depend on the installed version of antlr.
INGEST = dg.define_asset_job(
    "ingest",
    dg.AssetSelection.assets(raw_corpus, tokenized_samples, sample_features),
    description="Group 1_corpus: reads new source files, tokenizes and embeds them. Downstream assets follow by "
    "automation.",
)
MEASURE_DRIFT = dg.define_asset_job(
    "measure_drift",
    dg.AssetSelection.assets(production_drift),
    description="Group 5_live: compares current production texts with the champion's calibration set.",
)
STUDY = dg.define_asset_job(
    STUDY_JOB,
    dg.AssetSelection.assets(study),
    description="Runs the requested studies (`plumbline study`); an interrupted study is resumed.",
)
SERVE_CHECK = dg.define_asset_job(
    "serve_check",
    dg.AssetSelection.checks(served_as_simulated),
    description="Serves every quantized model in vLLM and compares its answers with the evaluation's (`make engine`).",
)
JOBS: list[Any] = [EVERYTHING, INGEST, CALIBRATION, MODEL, VERDICT, MEASURE_DRIFT, STUDY, SERVE_CHECK]
