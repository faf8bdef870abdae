"""The Dagster definition of `deployed_model`."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from assets.calibration_report import calibration_report
from assets.calibration_set import calibration_set
from assets.evaluation import evaluation
from assets.quantized_model import quantized_model
from assets.tokenized_samples import tokenized_samples
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model.params import DeploymentParams
from plumbline.graph.resources import BASE_MODEL, DVC, MLFLOW
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.params import GridParams
from plumbline.quantized_model.params import SchemeParams


@dg.asset(
    group_name="4_verdict",
    kinds={"mlflow"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC, MLFLOW},
    code_version=code_version("deployed_model"),
    automation_condition=ON_NEW_INPUT,
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=180), warn_window=timedelta(days=90)),
    deps=[calibration_report, evaluation, quantized_model, calibration_set, tokenized_samples],
    description="Which model is the champion, and why. The best model of the grid under the deployed scheme is "
    "compared with the champion on the same documents and has to pass the checks below. The registry alias `champion` "
    "moves to it only if it passes all of them; otherwise the champion stays, and the record says which check failed, "
    "and by how much.",
)
def deployed_model(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.deployed_model.build import build_deployed_model
    from plumbline.deployed_model.promotion import Inputs
    from plumbline.deployed_model.summary import summary
    from plumbline.graph.champion import champion_of, models, promote_candidate
    from plumbline.tracking.promotion import withdrawn

    def build(step: Step, key: str, out: Path) -> None:
        deployment = DeploymentParams.model_validate(step.params["deployment"])
        registry = context.resources.mlflow.registry()
        build_deployed_model(
            deployment,
            SchemeParams.model_validate(step.params[f"schemes.{deployment.scheme}"]).model_dump(mode="json"),
            list(GridParams.model_validate(step.params["grid"]).calibrations),
            ReportParams.model_validate(step.params["report"]),
            Inputs(
                evaluations=step.input("evaluation"),
                models=step.input("quantized_model"),
                sets=step.input("calibration_set"),
                samples=step.input("tokenized_samples"),
                report=step.input("calibration_report"),
                serving=step.root / deployment.serving if deployment.serving else None,
            ),
            out,
            champion_of(step, registry),
            models(step.root),
            withdrawn(registry),
            step.previous,
            base_model(step).trust_remote_code,
        )

    def promote(step: Step, key: str) -> dict[str, Any]:
        return promote_candidate(step)

    yield from materialize(context, build, summary, after=promote)
