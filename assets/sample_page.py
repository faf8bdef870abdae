"""The Dagster definition of `sample_page`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_set import calibration_set
from assets.raw_corpus import raw_corpus
from plumbline.graph.partitions import CALIBRATIONS
from plumbline.graph.resources import BASE_MODEL, DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.sample_page.params import PageParams


@dg.asset(
    group_name="3_model",
    kinds={"html"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC},
    partitions_def=CALIBRATIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("sample_page"),
    automation_condition=ON_NEW_INPUT,
    deps=[raw_corpus, calibration_set, activation_stats],
    description="A page with every sample of a calibration set: its text, document and row, why it was picked, and the "
    "layers whose extremes it sets. `pages: {texts: false}` in params.yaml leaves the texts out.",
)
def sample_page(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.sample_page.build import build_sample_page
    from plumbline.sample_page.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        build_sample_page(
            PageParams.model_validate(step.params["pages"]),
            base_model(step),
            step.input("raw_corpus"),
            step.input("calibration_set", key),
            step.input("activation_stats", key),
            out,
        )

    yield from materialize(context, build, summary)
