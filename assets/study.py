"""The Dagster definition of `study`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.sample_features import sample_features
from assets.tokenized_samples import tokenized_samples
from plumbline.activation_stats.params import StatisticsParams
from plumbline.graph.partitions import STUDIES
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC, MLFLOW
from plumbline.graph.step import OWNERS, Step, base_model, code_version, materialize
from plumbline.params import load_params
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.params import StudyParams
from plumbline.versioning.code import module_version

MEASURING = (
    "plumbline.study.controls",
    "plumbline.study.distances",
    "plumbline.study.draws",
    "plumbline.study.measuring",
)
"""Modules that determine the measurements; a change in other modules reuses measured results."""


@dg.asset(
    group_name="4_verdict",
    kinds={"html", "mlflow", "pytorch"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC, MLFLOW},
    pool=HEAVY,
    partitions_def=STUDIES,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("study"),
    deps=[tokenized_samples, sample_features],  # no automation: a study takes long and runs on request
    description="Is one rule for choosing calibration texts better than another? Rules against a baseline and controls "
    "over many paired draws, sizes and schemes, with confidence intervals. Runs on request: `plumbline study`.",
)
def study(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.calibration_set.pool import Sources
    from plumbline.study.build import build_study
    from plumbline.study.summary import summary
    from plumbline.tracking.study import log_study

    def build(step: Step, key: str, out: Path) -> None:
        params = StudyParams.model_validate(step.params[f"studies.{key}"])
        build_study(
            params,
            {name: SchemeParams.model_validate(step.params["schemes"][name]) for name in params.schemes},
            StatisticsParams.model_validate(step.params["statistics"]),
            Sources(step.input("tokenized_samples"), step.input("sample_features"), base_model(step)),
            step.root / ".plumbline" / "study",
            {"code": module_version(*MEASURING), **step.inputs},
            out,
            key,
            load_params(step.root).execution,
        )

    def track(step: Step, key: str) -> dict[str, Any]:
        return log_study(step, key, context.run_id)

    yield from materialize(context, build, summary, after=track)
