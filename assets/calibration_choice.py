"""The Dagster definition of `calibration_choice`, the only asset with launch-time overrides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from plumbline.graph.partitions import CALIBRATIONS
from plumbline.graph.resources import DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize
from plumbline.params import load_params


class ChoiceOverrides(dg.Config):
    """Launch-time overrides of the choice's entry in params.yaml; omitted fields keep their values."""

    strategy: str | None = Field(
        default=None,
        description="Another strategy, such as random or token_coverage; `plumbline strategies` lists them.",
    )
    n: int | None = Field(default=None, description="Another number of samples, at least 1.")
    seed: int | None = Field(default=None, description="Another seed of the random choices; any whole number.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the strategy by name, such as {quotas: equal}; `plumbline strategies NAME` lists them.",
    )


@dg.asset(
    group_name="2_calibration",
    kinds={"yaml"},
    owners=OWNERS,
    required_resource_keys={DVC},
    partitions_def=CALIBRATIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("calibration_choice"),
    automation_condition=ON_NEW_INPUT,
    description="The effective parameters of a calibration choice: its entry in params.yaml with the overrides of the "
    "launch. Everything downstream reads this asset, so every override is recorded.",
)
def calibration_choice(context: dg.AssetExecutionContext, config: ChoiceOverrides) -> Iterator[Any]:
    from plumbline.calibration_choice.build import build_calibration_choice
    from plumbline.calibration_choice.choice import overrides, require_launch
    from plumbline.calibration_choice.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        build_calibration_choice(key, step.params[f"calibrations.{key}"], out)

    def changes(key: str) -> dict[str, Any]:
        entry = load_params().calibrations[key]
        changed = overrides(entry, config.strategy, config.n, config.seed, config.options)
        require_launch(key, entry, changed)
        return changed

    yield from materialize(context, build, summary, overrides=changes)
