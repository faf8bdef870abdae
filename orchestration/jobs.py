"""Jobs: selections of assets that are launched by name."""

import dagster as dg

from assets.production_drift import production_drift
from assets.raw_corpus import raw_corpus
from assets.sample_features import sample_features
from assets.study import study
from assets.tokenized_samples import tokenized_samples
from orchestration.checks import served_as_simulated
from plumbline.graph.sensor_ticks import STUDY_JOB

# Selection objects, because string selections depend on the installed version of antlr.
INGEST = dg.define_asset_job(
    "ingest",
    dg.AssetSelection.assets(raw_corpus, tokenized_samples, sample_features),
    description="Reads new source files, tokenizes and embeds them. Downstream assets follow by automation.",
)
MEASURE_DRIFT = dg.define_asset_job(
    "measure_drift",
    dg.AssetSelection.assets(production_drift),
    description="Compares current production texts with the champion's calibration set.",
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
JOBS = [INGEST, MEASURE_DRIFT, STUDY, SERVE_CHECK]
