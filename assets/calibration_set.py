"""The Dagster definition of `calibration_set`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.calibration_choice import calibration_choice
from assets.sample_features import sample_features
from assets.tokenized_samples import tokenized_samples
from plumbline.graph.partitions import CALIBRATIONS
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize


@dg.asset(
    group_name="2_calibration",
    kinds={"parquet"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC},
    pool=HEAVY,
    partitions_def=CALIBRATIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("calibration_set"),
    automation_condition=ON_NEW_INPUT,
    deps=[calibration_choice, tokenized_samples, sample_features],
    description="The samples that a choice picked from the pool, in order, with the reason for each, and how well they "
    "represent production. Loads as a torch Dataset and as a datasets.Dataset.",
)
def calibration_set(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.calibration_set.build import build_calibration_set
    from plumbline.calibration_set.pool import Sources
    from plumbline.calibration_set.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        sources = Sources(step.input("tokenized_samples"), step.input("sample_features"), base_model(step))
        build_calibration_set(step.input("calibration_choice", key), sources, out)

    yield from materialize(context, build, summary)
