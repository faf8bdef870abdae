"""What starts runs by itself: the inbox, new inputs, and what DVC made behind Dagster's back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg

from assets.raw_corpus.asset import inbox, raw_corpus
from assets.sample_features.asset import sample_features
from assets.tokenized_samples.asset import tokenized_samples
from orchestration.params import load_params, project_root

INGEST = dg.define_asset_job(
    "ingest",
    # Objects, not strings: string selections depend on the version of antlr that is installed.
    selection=dg.AssetSelection.assets(raw_corpus, tokenized_samples, sample_features),
    description="Reads new source files, tokenizes and embeds what is new. What depends on it follows by automation.",
)


def inbox_state(folder: Path) -> dict[str, list[int]]:
    """Size and modification time (ns) of every file that counts as dropped: no hidden, partial or README file."""
    from assets.raw_corpus.ingest import IGNORED_IN_INBOX
    from assets.raw_corpus.sources.directory import file_names

    state = {}
    for name in sorted(file_names(folder)) if folder.is_dir() else []:
        path = folder / name
        if name not in IGNORED_IN_INBOX and path.is_file():
            status = path.stat()
            state[name] = [status.st_size, status.st_mtime_ns]
    return state


def inbox_digest(folder: Path, state: dict[str, list[int]]) -> str:
    """SHA-256 over the names and contents of the files of `state`."""
    from assets.artifact import sha256_files, sha256_json

    return sha256_json(sha256_files(folder, state))


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new or changed file in the inbox leads to one run; a file that is still being written waits.",
)
def inbox_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One `ingest` run for every change of the inbox's content.

    A change is acted on when two ticks in a row see the same sizes and times, so a file that is still being written
    waits. The cursor holds a sequence number and the content last acted on; the run key is made of both. A daemon
    killed between launching the run and saving the cursor computes the same key again, and Dagster launches nothing;
    content that comes back after having been away has a new number, and runs.
    """
    folder = project_root() / load_params().corpus.inbox
    cursor: dict[str, Any] = json.loads(context.cursor) if context.cursor else {"sequence": 0, "digest": "", "seen": {}}
    state = inbox_state(folder)
    if state == cursor.get("acted"):
        return dg.SkipReason("the inbox has not changed")
    if state != cursor["seen"]:
        context.update_cursor(json.dumps({**cursor, "seen": state}))
        return dg.SkipReason("the inbox is changing; waiting until two looks agree")
    digest = inbox_digest(folder, state)
    if digest == cursor["digest"] or (not state and not cursor["digest"]):
        context.update_cursor(json.dumps({**cursor, "acted": state}))
        return dg.SkipReason("files were touched, their content is what it was")
    sequence = cursor["sequence"] + 1
    event = dg.AssetMaterialization(inbox.key, metadata={"files": len(state)}, tags={"dagster/data_version": digest})
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"inbox-{sequence}-{digest[:16]}", tags={"plumbline/trigger": "inbox"})],
        asset_events=[event],
        cursor=json.dumps({"sequence": sequence, "digest": digest, "seen": state, "acted": state}),
    )


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place.",
)
def dvc_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason | None:
    """Reports to Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place."""
    from orchestration.definitions import defs
    from orchestration.reconcile import reconcile

    lock = project_root() / "dvc.lock"
    stamp = f"{lock.stat().st_mtime_ns}-{lock.stat().st_size}" if lock.is_file() else ""
    if stamp == (context.cursor or ""):
        return dg.SkipReason("dvc.lock has not changed")
    running = context.instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    if running:  # its steps report their own output right after dvc.lock is written
        return dg.SkipReason(f"{running} runs in progress; they report by themselves")
    names = reconcile(context.instance, defs)
    context.update_cursor(stamp)
    return dg.SkipReason(f"reported {len(names)} artifacts that DVC made: {names[:5]}" if names else "all known")


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process was killed, so that the queue goes on.",
)
def dead_run_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Marks runs as failed whose process was killed. Without it they stay "started", and the queue waits for them."""
    from orchestration.dead_runs import end_dead_runs

    ended = end_dead_runs(context.instance)
    return dg.SkipReason(f"marked as failed: {ended}" if ended else "every started run has a living process")


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Runs what is downstream of new data, when the content of something it reads has changed.",
)

STUDY = dg.define_asset_job(
    "run_study",
    dg.AssetSelection.assets("study"),
    description="Measure and judge the studies that were asked for (`plumbline study`); each goes on where it stopped.",
)
JOBS = [INGEST, STUDY]
SENSORS = [inbox_sensor, dvc_sensor, dead_run_sensor, automation]
