"""Ends runs whose process died: a killed worker leaves its run `started`, which blocks the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import yaml

CLOCK = 2.0
"""Seconds by which the times of a process and of an event may differ."""
UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def end_dead_runs(instance: dg.DagsterInstance, home: Path, location: str = "") -> list[str]:
    """Mark runs whose process no longer exists as failed; returns their ids.

    A run logs its process id, which is valid only on the machine where it ran. In a history that machines share, only
    runs of this process's code location are looked at, which starts them beside itself. A run launcher of another kind
    (`run_launcher` in dagster.yaml) monitors its workers.

    Args:
        home: the folder that holds dagster.yaml.
        location: name of the code location that this process belongs to.
    """
    settings = _settings(home)
    if "run_launcher" in settings or not (location or _is_local(settings)):
        return []
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        if not _is_local(settings) and _location_of(run) != location:
            continue
        started = _process(instance, run.run_id)
        if started is None or _lives(*started):
            continue
        current = instance.get_run_by_id(run.run_id)
        if current is not None and current.status in UNFINISHED:  # it may have ended since it was listed
            instance.report_run_failed(
                current, f"Process {started[0]} of this run no longer exists: killed, or out of memory. Run it again."
            )
            ended.append(run.run_id)
    return ended


def _is_local(settings: dict[str, Any]) -> bool:
    """Whether the history is in local SQLite files, the default of dagster.yaml."""
    return "run_storage" not in settings and "sqlite" in settings.get("storage", ["sqlite"])


def _settings(home: Path) -> dict[str, Any]:
    path = home / "dagster.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}


def _location_of(run: dg.DagsterRun) -> str:
    origin = run.remote_job_origin
    return "" if origin is None else str(origin.repository_origin.code_location_origin.location_name)


def _process(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """The process id that a run logged, and when; None without one."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        metadata = entry.get_dagster_event().engine_event_data.metadata
        if "pid" in metadata:
            return int(str(metadata["pid"].value)), entry.timestamp
    return None


def _lives(pid: int, logged: float) -> bool:
    """Whether the process that logged its id still lives: not another one, which was given the same id later."""
    try:
        return psutil.Process(pid).create_time() <= logged + CLOCK
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
