"""Materializes one asset in this process, for the command of its DVC stage.

Code, checks, metadata and MLflow logging are those of every other Dagster run, and the run is recorded in the
workspace's Dagster history.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plumbline.graph.in_process import run_asset
from plumbline.graph.instance import instance
from plumbline.params import load_params
from plumbline.versioning.config import use_remote
from plumbline.versioning.lock import stage_name


@dataclass(frozen=True)
class Materialized:
    """The result of a materialization."""

    error: str
    """Empty if it succeeded."""
    warnings: tuple[str, ...]
    """Descriptions of failed checks that do not block."""


def materialize(root: Path, asset: str, key: str | None = None) -> Materialized:
    """Materialize an asset, or one partition of it.

    Raises:
        ValueError: there is no such asset or partition, the partition key is missing, or something is known to make the
            step fail.
    """
    from plumbline.graph.definitions import stage_assets
    from plumbline.graph.preflight import require_ready
    from plumbline.graph.run import failed_checks, failure, stopped, was_interrupted
    from plumbline.graph.step import FRONT_DOOR

    assets = {definition.key.to_user_string(): definition for definition in stage_assets(root)}
    if asset not in assets:
        raise ValueError(f"no asset {asset!r}; assets: {', '.join(assets)}")
    definition = assets[asset]
    keys = definition.partitions_def.get_partition_keys() if definition.partitions_def else [None]
    if key not in keys:
        partitions = ", ".join(map(str, keys)) if definition.partitions_def else "none, so omit KEY"
        raise ValueError(f"{asset} has no partition {key!r}; partitions: {partitions}")
    if remote := load_params(root).storage.remote:
        use_remote(root, remote)  # `dvc repro` is the first command of a workspace
    require_ready(root, [stage_name(asset, key)])
    with instance() as history:
        result = run_asset(root, definition, history, {FRONT_DOOR: "dvc repro"}, [key] if key else [])
    if was_interrupted(result):
        return Materialized(stopped(stage_name(asset, key)), ())
    return Materialized("", tuple(failed_checks(result))) if result.success else Materialized(failure(result), ())
