"""The Dagster definition of `quantized_model`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_set import calibration_set
from plumbline.graph.partitions import PAIRS, PAIRS_OF_CALIBRATION, split_pair
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.params import load_params
from plumbline.quantized_model.params import SchemeParams
from plumbline.versioning.scratch import parts_of


@dg.asset(
    group_name="3_model",
    kinds={"pytorch", "huggingface"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC},
    pool=HEAVY,
    partitions_def=PAIRS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("quantized_model"),
    automation_condition=ON_NEW_INPUT,
    deps=[
        dg.AssetDep(upstream, partition_mapping=PAIRS_OF_CALIBRATION)
        for upstream in (calibration_set, activation_stats)
    ],
    description="The base model quantized under a scheme with the statistics of a calibration set: a Hugging Face "
    "folder that transformers and vLLM load. calibration.json beside the weights lists the calibration samples.",
)
def quantized_model(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        calibration, scheme = split_pair(key)
        build_quantized_model(
            scheme,
            SchemeParams.model_validate(step.params[f"schemes.{scheme}"]),
            base_model(step),
            step.input("activation_stats", calibration),
            step.input("calibration_set", calibration),
            out,
            step.code_version,
            load_params(step.root).execution,
            parts_of(step.root, step.name),
        )

    yield from materialize(context, build, summary)
