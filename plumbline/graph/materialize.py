"""The command of every DVC stage: `python -m plumbline.graph.materialize ASSET [PARTITION]`.

It materializes one asset in this process, with the same code, checks, metadata and MLflow logging as Dagster's other
doors; the run is kept in the workspace's Dagster history.
"""

from __future__ import annotations

import sys

from plumbline.graph.instance import QUIET, instance
from plumbline.workspace import workspace_root


def main(asset: str, key: str | None = None) -> int:
    """Materialize; the exit status is 0 if it succeeded."""
    import dagster as dg

    from plumbline.graph.definitions import checks_of, load_definitions
    from plumbline.graph.run import failed_checks, failure

    root = workspace_root()
    definition = load_definitions(root).get_assets_def(dg.AssetKey(asset))
    with instance() as history:
        result = dg.materialize(
            [definition, *checks_of(root, definition)],
            instance=history,
            partition_key=key,
            run_config=QUIET,
            raise_on_error=False,
            tags={"front_door": "dvc repro"},
        )
        if not result.success:
            print(f"Error: {failure(result)}", file=sys.stderr)
        else:
            for warning in failed_checks(result):
                print(f"Warning: {warning}", file=sys.stderr)
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
