"""Ends runs whose process died: a killed worker leaves its run `started`, which blocks the queue."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import psutil
import yaml

UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def end_dead_runs(instance: dg.DagsterInstance, home: Path) -> list[str]:
    """Mark runs whose process no longer exists as failed; returns their ids.

    A run logs its process id, which is valid only on the machine where it ran. Nothing is done if the history is in a
    database that machines share: there the run launcher monitors its workers.

    Args:
        home: the folder that holds dagster.yaml.
    """
    if not history_is_local(home):
        return []
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        pid = _process_id(instance, run.run_id)
        if pid is None or psutil.pid_exists(pid):
            continue
        current = instance.get_run_by_id(run.run_id)
        if current is not None and current.status in UNFINISHED:  # it may have ended since it was listed
            instance.report_run_failed(
                current, f"Process {pid} of this run no longer exists: killed, or out of memory. Run it again."
            )
            ended.append(run.run_id)
    return ended


def history_is_local(home: Path) -> bool:
    """Whether the history is in local SQLite files, the default of dagster.yaml."""
    path = home / "dagster.yaml"
    settings = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
    return "run_storage" not in settings and "sqlite" in settings.get("storage", ["sqlite"])


def _process_id(instance: dg.DagsterInstance, run_id: str) -> int | None:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        metadata = entry.get_dagster_event().engine_event_data.metadata
        if "pid" in metadata:
            return int(str(metadata["pid"].value))
    return None
