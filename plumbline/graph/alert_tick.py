"""The tick of the alert sensor: what happened since the last tick that a person should know."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

import dagster as dg

from plumbline.graph.alerts import HELP, Alert, Channels, send

FAILED_RUNS = "failed runs"
AT_ONCE = 20
"""Most alerts of a tick; the next tick goes on."""


def alert_tick(context: dg.SensorEvaluationContext, checks: Sequence[dg.AssetCheckKey]) -> dg.SkipReason:
    """Send an alert for each of these checks that failed, and for each run that failed, since the last tick.

    An alert that cannot be delivered fails the tick, and is sent again by the next one. What happened before the first
    tick is not told.

    Raises:
        ValueError: a setting is wrong.
        OSError: a server does not take the alert.
    """
    channels = Channels.of(os.environ)
    if not channels.any:
        return dg.SkipReason(f"nobody is told anything: {HELP}")
    seen: dict[str, int] | None = json.loads(context.cursor) if context.cursor else None
    news, sent = dict(seen or {}), list[str]()
    for place, position, alert in happened(context.instance, checks, seen or {}):
        if seen is not None and alert is not None and len(sent) < AT_ONCE:
            send(alert, channels)
            sent.append(alert.title)
        elif len(sent) >= AT_ONCE:
            break
        news[place] = position
        context.update_cursor(json.dumps(news))  # before the next one, which may fail
    context.update_cursor(json.dumps(news))
    return dg.SkipReason(f"told of {len(sent)}: {'; '.join(sent)}" if sent else "nothing to tell")


def happened(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckKey], seen: dict[str, int]
) -> Iterator[tuple[str, int, Alert | None]]:
    """What is new since `seen`: (place, position there, alert or None if all is well)."""
    for key in checks:
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
        if record is None or record.event is None or record.id <= seen.get(key.to_user_string(), -1):
            continue
        evaluation = record.event.dagster_event.asset_check_evaluation_data if record.event.dagster_event else None
        if evaluation is None:
            continue  # planned, and not run yet
        title = f"check {key.name} of {key.asset_key.to_user_string()} failed"
        alert = Alert(title, evaluation.description or "", key.asset_key.to_user_string(), record.run_id)
        yield key.to_user_string(), record.id, None if evaluation.passed else alert
    yield from _failed_runs(instance, seen.get(FAILED_RUNS))


def _failed_runs(instance: dg.DagsterInstance, after: int | None) -> Iterator[tuple[str, int, Alert | None]]:
    if after is None:
        newest = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
        yield FAILED_RUNS, newest[0].storage_id if newest else 0, None
        return
    records = dg.RunStatusChangeRecordsFilter(event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=after)
    for record in instance.fetch_run_status_changes(records, limit=AT_ONCE, ascending=True).records:
        run = instance.get_run_by_id(record.run_id)
        assets = ", ".join(sorted(key.to_user_string() for key in (run.asset_selection if run else None) or ()))
        name = assets or (run.job_name if run else "")
        yield (
            FAILED_RUNS,
            record.storage_id,
            Alert(f"run of {name} failed", _why(instance, record), assets, record.run_id),
        )


def _why(instance: dg.DagsterInstance, record: dg.EventLogRecord) -> str:
    """The sentence of the step that failed, else what Dagster says of the run."""
    for entry in instance.all_logs(record.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        failure = event.step_failure_data if event else None
        if failure is not None and failure.user_failure_data is not None and failure.user_failure_data.description:
            return failure.user_failure_data.description
        if failure is not None and failure.error is not None:
            return failure.error.message.strip()
    return record.event_log_entry.user_message
