"""The Dagster definition of `activation_stats`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from assets.calibration_set import calibration_set
from plumbline.activation_stats.params import StatisticsParams
from plumbline.graph.launch import launched
from plumbline.graph.partitions import CALIBRATIONS
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.params import load_params
from plumbline.versioning.scratch import parts_of


class CollectionConfig(dg.Config):
    """How this launch collects; omitted fields are as under `execution:` in params.yaml. No byte depends on it."""

    mode: str | None = Field(default=None, description="whole, layerwise, or auto: layerwise where memory is short.")
    workers: int | None = Field(default=None, description="Number of processes, at least 1.")
    executor: str | None = Field(default=None, description="local, or ray (the optional extra).")
    hidden_gib: float | None = Field(
        default=None, description="layerwise: GiB of hidden states that each worker keeps in memory."
    )


@dg.asset(
    group_name="3_model",
    kinds={"pytorch"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC},
    pool=HEAVY,
    partitions_def=CALIBRATIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("activation_stats"),
    automation_condition=ON_NEW_INPUT,
    deps=[calibration_set],
    description="Activation statistics of the base model's linear layers on the calibration set: ranges, moments, "
    "histograms, Hessians, and the sample behind each extreme. Collected once, used by every scheme.",
)
def activation_stats(context: dg.AssetExecutionContext, config: CollectionConfig) -> Iterator[Any]:
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.activation_stats.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        params = StatisticsParams.model_validate(step.params["statistics"])
        execution = launched(load_params(step.root).execution, config.model_dump(), "activation_stats")
        inputs = base_model(step), step.input("calibration_set", key)
        parts = parts_of(step.root, step.name)
        build_activation_stats(params, *inputs, out, execution, step.code_version, parts)

    yield from materialize(context, build, summary)
