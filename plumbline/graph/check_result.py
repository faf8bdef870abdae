"""Adapts the checks of plumbline.graph.checks to Dagster: the partitions to check, and the result."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from plumbline.graph.checks import CheckOutcome
from plumbline.markdown import literal
from plumbline.workspace import workspace_root


def data_folder() -> Path:
    """The folder `data` of the workspace."""
    return workspace_root() / "data"


def partitions(context: dg.AssetCheckExecutionContext, asset: dg.AssetsDefinition) -> list[str]:
    """The partitions to check: those of the run, or all that exist."""
    run = context.op_execution_context
    if run.has_partition_key or run.has_partition_key_range:
        return list(run.partition_keys)
    keys = asset.partitions_def.get_partition_keys() if asset.partitions_def else []
    return [key for key in keys if (data_folder() / asset.key.to_user_string() / key).is_dir()]


def runs_alone(context: dg.AssetCheckExecutionContext) -> bool:
    """Whether the run executes checks alone, so that somebody asked for them, and materializes no asset."""
    return not context.op_execution_context.job_def.asset_layer.executable_asset_keys


def as_result(outcome: CheckOutcome) -> dg.AssetCheckResult:
    """Convert an outcome to Dagster's result, whose description the UI shows as Markdown."""
    return dg.AssetCheckResult(
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.WARN if outcome.warn else dg.AssetCheckSeverity.ERROR,
        description=literal(outcome.description),
        metadata=outcome.metadata,
    )
