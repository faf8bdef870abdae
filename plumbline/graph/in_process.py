"""Runs one asset and its checks in this process, as a run that carries the names of the asset and its partitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.graph.instance import QUIET

if TYPE_CHECKING:
    import dagster as dg

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITIONS = "plumbline/partitions"
"""Tag that the list of runs shows; Dagster's own two for a range are hidden there."""


def run_asset(
    root: Path,
    asset: dg.AssetsDefinition,
    history: dg.DagsterInstance,
    tags: Mapping[str, str],
    keys: Sequence[str] = (),
) -> dg.ExecuteInProcessResult:
    """Materialize an asset, or neighbouring partitions of it, and record the run as one of the UI would be.

    Args:
        keys: the partitions, in the order of the partitions definition; empty for an asset without partitions.
    """
    from plumbline.graph.definitions import load_definitions

    # The job behind the UI's button "Materialize". `dg.materialize` makes a nameless job for every call instead.
    job = load_definitions(root).resolve_implicit_global_asset_job_def()
    several = {RANGE_START: keys[0], RANGE_END: keys[-1], PARTITIONS: shown(keys)} if len(keys) > 1 else {}
    return job.execute_in_process(
        instance=history,
        asset_selection=[asset.key],
        partition_key=keys[0] if len(keys) == 1 else None,
        tags={**tags, **several},
        run_config=QUIET,
        raise_on_error=False,
    )


def shown(keys: Sequence[str]) -> str:
    """Partitions in a few words: all of up to three, else the first, the last and their number."""
    return ", ".join(keys) if len(keys) <= 3 else f"{keys[0]} … {keys[-1]} ({len(keys)})"
