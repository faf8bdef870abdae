"""The Dagster definition of `activation_stats`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.calibration_set import calibration_set
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.params import ModelParams
from plumbline.graph.partitions import CALIBRATIONS
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize
from plumbline.params import load_params


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
        from plumbline.activation_stats.build import build_activation_stats
        from plumbline.base_model.checkpoint import BaseCheckpoint

        return build_activation_stats(
            StatisticsParams.model_validate(step.params["statistics"]),
            BaseCheckpoint.of(ModelParams.model_validate(step.params["model"]), step.root),
            step.input("calibration_set", key),
            out,
            load_params(step.root).execution,
        )

    yield from materialize(context, build)
