"""The Dagster definition of `evaluation`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.quantized_model import quantized_model
from assets.tokenized_samples import tokenized_samples
from plumbline.base_model.params import ModelParams
from plumbline.evaluation.params import EvaluationParams
from plumbline.graph.partitions import PAIRS
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize


@dg.asset(
    group_name="4_verdict",
    kinds={"mlflow", "pytorch"},
    owners=OWNERS,
    partitions_def=PAIRS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("evaluation"),
    automation_condition=ON_NEW_INPUT,
    deps=[quantized_model, tokenized_samples],
    description="How far a quantized model is from the base model on the report split, which no calibration choice may "
    "see: KL divergence per token, perplexity, top-1 agreement, per domain. Also a run in MLflow.",
)
def evaluation(context: dg.AssetExecutionContext) -> Iterator[Any]:
    def build(step: Step, key: str, out: Path) -> dict[str, Any]:
        from plumbline.evaluation.evaluate import build_evaluation

        params = EvaluationParams.model_validate(step.params["evaluation"])
        _require_declared(params, step)
        return build_evaluation(
            params,
            ModelParams.model_validate(step.params["model"]),
            step.input("quantized_model", key),
            step.input("tokenized_samples"),
            out,
            step.root,
        )

    def track(step: Step, key: str, summary: Mapping[str, Any]) -> dict[str, Any]:
        from plumbline.graph.timings import seconds_before
        from plumbline.params import load_params
        from plumbline.tracking.evaluation import log_evaluation

        calibration, _ = load_params(step.root).pairs()[key]
        return log_evaluation(step, key, context.run_id, seconds_before(calibration, key))

    yield from materialize(context, build, after=track)


def _require_declared(params: EvaluationParams, step: Step) -> None:
    """What is read must be a dependency in dvc.yaml, or neither door would notice that it changed."""
    if params.items is not None and params.items not in step.inputs:
        raise ValueError(
            f"evaluation.items reads {params.items}, which dvc.yaml does not list: add it to the deps of the stage "
            "evaluation there, so that a change of the file is seen"
        )
