"""The Dagster definition of `deployed_model`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.calibration_report import calibration_report
from assets.calibration_set import calibration_set
from assets.evaluation import evaluation
from assets.quantized_model import quantized_model
from assets.tokenized_samples import tokenized_samples
from plumbline.base_model.params import ModelParams
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model.params import DeploymentParams
from plumbline.evaluation.params import EvaluationParams
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize
from plumbline.params import Grid
from plumbline.quantized_model.params import SchemeParams


@dg.asset(
    group_name="4_verdict",
    kinds={"mlflow"},
    owners=OWNERS,
    code_version=code_version("deployed_model"),
    automation_condition=ON_NEW_INPUT,
    deps=[calibration_report, evaluation, quantized_model, calibration_set, tokenized_samples],
    description="Which model is the champion, and why. The best model of the grid under the deployed scheme is "
    "compared with the champion on the same documents, and held to the checks below. The alias `champion` of the "
    "registry moves to it only if it passes every one; otherwise the champion stays, and the record says which check "
    "failed, and by how much.",
)
def deployed_model(context: dg.AssetExecutionContext) -> Iterator[Any]:
    def build(step: Step, key: str, out: Path) -> dict[str, Any]:
        from plumbline.deployed_model.promote import Inputs, build_promotion
        from plumbline.evaluation.evaluate import build_evaluation
        from plumbline.graph.champion import champion_of, models
        from plumbline.tracking.promotion import withdrawn
        from plumbline.tracking.registry import open_registry

        asked = DeploymentParams.model_validate(step.params["deployment"])
        scheme = SchemeParams.model_validate(step.params[f"schemes.{asked.scheme}"])
        model = ModelParams.model_validate(step.params["model"])
        params = EvaluationParams.model_validate(step.params["evaluation"])
        samples = step.input("tokenized_samples")

        def evaluate(folder: Path, target: Path) -> object:
            return build_evaluation(params, model, folder, samples, target, step.root)

        registry = open_registry(step.root)
        inputs = Inputs(
            evaluations=step.input("evaluation"),
            models=step.input("quantized_model"),
            sets=step.input("calibration_set"),
            samples=samples,
            report=step.input("calibration_report"),
            serving=step.root / asked.serving if asked.serving else None,
        )
        return build_promotion(
            asked,
            scheme.model_dump(mode="json"),
            list(Grid.model_validate(step.params["grid"]).calibrations),
            ReportParams.model_validate(step.params["report"]),
            inputs,
            out,
            champion_of(step, registry, evaluate),
            models(step.root),
            withdrawn(registry),
            step.previous,
            model.trust_remote_code,
        )

    def promote(step: Step, key: str, summary: Mapping[str, Any]) -> dict[str, Any]:
        from plumbline.graph.champion import promote_candidate

        return promote_candidate(step)

    yield from materialize(context, build, after=promote)
