"""The Dagster definition of `calibration_report`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_set import calibration_set
from assets.evaluation import evaluation
from plumbline.calibration_report.params import ReportParams
from plumbline.graph.resources import DVC, MLFLOW
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize
from plumbline.params import GridParams, pair_key


@dg.asset(
    group_name="4_verdict",
    kinds={"html", "mlflow"},
    owners=OWNERS,
    required_resource_keys={DVC, MLFLOW},
    code_version=code_version("calibration_report"),
    automation_condition=ON_NEW_INPUT,
    deps=[evaluation, calibration_set, activation_stats],
    description="One page that says which calibration choice is better, and whether the difference is real: the "
    "verdict with confidence intervals, the table of choice × scheme, the plots.",
)
def calibration_report(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.calibration_report.build import build_calibration_report
    from plumbline.calibration_report.summary import summary
    from plumbline.tracking.report import log_report

    def build(step: Step, key: str, out: Path) -> None:
        grid = GridParams.model_validate(step.params["grid"])
        pairs = [pair_key(choice, scheme) for choice in grid.calibrations for scheme in grid.schemes]
        build_calibration_report(
            ReportParams.model_validate(step.params["report"]),
            {"calibrations": list(grid.calibrations), "schemes": list(grid.schemes)},
            {pair: step.input("evaluation", pair) for pair in pairs},
            {choice: step.input("calibration_set", choice) for choice in grid.calibrations},
            {choice: step.input("activation_stats", choice) for choice in grid.calibrations},
            out,
        )

    def track(step: Step, key: str) -> dict[str, Any]:
        return log_report(step, context.run_id)

    yield from materialize(context, build, summary, after=track)
