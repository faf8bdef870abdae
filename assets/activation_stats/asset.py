"""The Dagster definition of `activation_stats`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.activation_stats.params import StatisticsParams
from assets.base_model.params import ModelParams
from assets.calibration_set.asset import calibration_set
from orchestration.params import load_params
from orchestration.partitions import CALIBRATIONS
from orchestration.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize


@dg.asset(
    group_name="3_model",
    kinds={"pytorch"},
    owners=OWNERS,
    partitions_def=CALIBRATIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("activation_stats"),
    automation_condition=ON_NEW_INPUT,
    deps=[calibration_set],
    description="What the base model's linear layers saw when it read the calibration set: ranges, moments, "
    "histograms, Hessians, and which sample caused each extreme. Collected once, used by every scheme.",
)
def activation_stats(context: dg.AssetExecutionContext) -> Iterator[Any]:
    def build(step: Step, key: str, out: Path) -> dict[str, Any]:
        from assets.activation_stats.build import build_activation_stats

        return build_activation_stats(
            StatisticsParams.model_validate(step.params["statistics"]),
            ModelParams.model_validate(step.params["model"]),
            step.input("calibration_set", key),
            out,
            step.root,
            load_params(step.root).execution,
        )

    yield from materialize(context, build)
