"""The Dagster definition of `deployed_model`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.calibration_report.asset import calibration_report
from assets.evaluation.asset import evaluation
from orchestration.params import DeploymentParams, Grid
from orchestration.step import OWNERS, Step, code_version, materialize


@dg.asset(
    group_name="4_verdict",
    kinds={"mlflow"},
    owners=OWNERS,
    code_version=code_version("deployed_model"),
    deps=[calibration_report, evaluation],
    description="The promotion record: which quantized model carries the alias `champion` in the registry, on which "
    "figures, and what the verdict said. Promoted by hand or by `plumbline run`, not by automation.",
)
def deployed_model(context: dg.AssetExecutionContext) -> Iterator[Any]:
    def build(step: Step, key: str, out: Path) -> dict[str, Any]:
        from assets.deployed_model.promote import build_promotion

        grid = Grid.model_validate(step.params["grid"])
        scheme = DeploymentParams.model_validate(step.params["deployment"]).scheme
        return build_promotion(
            scheme,
            list(grid.calibrations),
            step.input("evaluation"),
            step.input("calibration_report"),
            out,
        )

    def promote(step: Step, key: str, summary: Mapping[str, Any]) -> dict[str, Any]:
        from orchestration.record import promote_in_mlflow

        return promote_in_mlflow(step)

    yield from materialize(context, build, after=promote)
