"""One asset, materialized in this process: what the command of a DVC stage does.

It runs the same code, checks, metadata and MLflow logging as Dagster's other doors; the run is kept in the workspace's
Dagster history.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plumbline.graph.instance import QUIET, instance


@dataclass(frozen=True)
class Materialized:
    """How it ended."""

    error: str
    """Empty if it succeeded."""
    warnings: tuple[str, ...]
    """Sentences of the checks that did not pass and block nothing."""


def materialize(root: Path, asset: str, key: str | None = None) -> Materialized:
    """Materialize an asset, or one partition of it.

    Raises:
        ValueError: there is no such asset or partition, or a partition was expected.
    """
    import dagster as dg

    from plumbline.graph.definitions import checks_of, stage_assets
    from plumbline.graph.run import failed_checks, failure

    assets = {each.key.to_user_string(): each for each in stage_assets(root)}
    if asset not in assets:
        raise ValueError(f"no asset is called {asset!r}; there are {', '.join(assets)}")
    definition = assets[asset]
    keys = definition.partitions_def.get_partition_keys() if definition.partitions_def else [None]
    if key not in keys:
        known = ", ".join(str(each) for each in keys) if definition.partitions_def else "none: leave KEY out"
        raise ValueError(f"{asset} has no partition {key!r}; it has {known}")
    with instance() as history:
        result = dg.materialize(
            [definition, *checks_of(root, definition)],
            instance=history,
            partition_key=key,
            run_config=QUIET,
            raise_on_error=False,
            tags={"front_door": "dvc repro"},
        )
    return Materialized("", tuple(failed_checks(result))) if result.success else Materialized(failure(result), ())
