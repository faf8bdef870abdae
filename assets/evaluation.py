"""The Dagster definition of `evaluation`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.quantized_model import quantized_model
from assets.tokenized_samples import tokenized_samples
from plumbline.evaluation.params import EvaluationParams
from plumbline.graph.partitions import PAIRS
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC, MLFLOW
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.params import load_params
from plumbline.versioning.scratch import parts_of


@dg.asset(
    group_name="4_verdict",
    kinds={"mlflow", "pytorch"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC, MLFLOW},
    pool=HEAVY,
    partitions_def=PAIRS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("evaluation"),
    automation_condition=ON_NEW_INPUT,
    deps=[quantized_model, tokenized_samples],
    description="Divergence of a quantized model from the base model on the report split, which no calibration choice "
    "can use: KL divergence per token, perplexity, top-1 agreement, per domain. Logged as a run in MLflow.",
)
def evaluation(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.evaluation.build import build_evaluation
    from plumbline.evaluation.summary import summary
    from plumbline.graph.declared import require_declared
    from plumbline.graph.timings import seconds_before
    from plumbline.tracking.evaluation import log_evaluation

    def build(step: Step, key: str, out: Path) -> None:
        params = EvaluationParams.model_validate(step.params["evaluation"])
        require_declared(step, {"evaluation.items": params.items} if params.items else {})
        model, samples = step.input("quantized_model", key), step.input("tokenized_samples")
        inputs = params, base_model(step), model, samples, out, load_params(step.root).execution
        build_evaluation(*inputs, step.code_version, parts_of(step.root, step.name))

    def track(step: Step, key: str) -> dict[str, Any]:
        return log_evaluation(step, key, context.run_id, seconds_before(key))

    yield from materialize(context, build, summary, after=track)
