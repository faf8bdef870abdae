"""The pool of heavy steps: of the steps that hold a model in memory, one runs at a time.

Dagster's queue keeps to the pool's limit in dagster.yaml, `concurrency: {pools: {default_limit: 1}}`. A command has no
queue, so it looks here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

HEAVY = "heavy"
"""Name of the pool."""
SECONDS = 2.0
"""Seconds between two looks at the runs in progress."""


def wait_for_others(
    history: dg.DagsterInstance,
    name: str,
    announce: Callable[[str], object],
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Return once no other run in progress uses the pool. Do nothing where the pool has no limit.

    Args:
        name: of the step that waits.
        announce: told once for whom it waits.
    """
    from plumbline.graph.dead_runs import end_dead_runs
    from plumbline.graph.instance import dagster_home

    limit = history.get_concurrency_config().pool_config.default_pool_limit
    if limit is None:
        return
    told = False
    while len(others := heavy_runs(history)) >= limit:
        if end_dead_runs(history, dagster_home()):
            continue
        if not told:
            other = others[0]
            assets = ", ".join(sorted(key.to_user_string() for key in other.asset_selection or ()))
            announce(f"{name} waits for run {other.run_id[:8]} ({assets or other.job_name}), which holds a model")
            told = True
        sleep(SECONDS)


def heavy_runs(history: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs in progress that use the pool."""
    import dagster as dg

    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return [
        run
        for run in history.get_runs(dg.RunsFilter(statuses=statuses))
        if run.run_op_concurrency is not None and HEAVY in (run.run_op_concurrency.all_pools or ())
    ]
