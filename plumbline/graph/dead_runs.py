"""Runs whose process is gone: a killed worker leaves its run `started` for ever, and the queue waits for it."""

from __future__ import annotations

import dagster as dg
import psutil
from dagster._core.storage.runs import SqliteRunStorage

UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark the runs as failed whose process no longer exists; returns their ids.

    A run writes its process id into its log. That says something only on the machine where it ran, so nothing is done
    where the history is in a database that machines share: there the run launcher watches its workers.
    """
    if not isinstance(instance.run_storage, SqliteRunStorage):
        return []
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        pid = _process_id(instance, run.run_id)
        if pid is None or psutil.pid_exists(pid):
            continue
        current = instance.get_run_by_id(run.run_id)
        if current is not None and current.status in UNFINISHED:  # it may have ended well since it was listed
            instance.report_run_failed(
                current, f"Process {pid} of this run is gone: killed, or out of memory. Run it again."
            )
            ended.append(run.run_id)
    return ended


def _process_id(instance: dg.DagsterInstance, run_id: str) -> int | None:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        metadata = entry.get_dagster_event().engine_event_data.metadata
        if "pid" in metadata:
            return int(str(metadata["pid"].value))
    return None
