"""The tick of each sensor: launch a run, report changes made outside Dagster, or say why nothing is done."""

from __future__ import annotations

import dagster as dg
from filelock import Timeout

from plumbline.workspace import workspace_root

STUDY_JOB = "run_study"
UNFINISHED = [
    status for status in dg.DagsterRunStatus if status not in (
        dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED
    )
]  # fmt: skip
READING = "a run is reading the corpus; new files wait until it ends"
CORPUS = dg.AssetKey("raw_corpus")
INBOX = dg.AssetKey("inbox")


def reading_the_corpus(instance: dg.DagsterInstance) -> bool:
    """Whether a run that reads intake.yaml is queued or running; the file must not change during the run."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    failed = dg.RunsFilter(tags={"dagster/will_retry": "true"}, statuses=[dg.DagsterRunStatus.FAILURE])
    # A run whose process was killed is retried a moment after it is marked as failed.
    runs = [*runs, *(run for run in instance.get_runs(failed, limit=9) if "dagster/auto_retry_run_id" not in run.tags)]
    return any(
        "front_door" in run.tags or (run.asset_selection or {CORPUS}) & {CORPUS}
        for run in runs
        if run.job_name != STUDY_JOB
    )


def inbox_tick(instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    """Take in complete files, and launch one run per change of the inbox."""
    from plumbline.graph import intake

    if reading_the_corpus(instance):
        return dg.SkipReason(READING)
    try:
        changes = intake.take_in_settled(workspace_root())
    except Timeout:
        return dg.SkipReason(READING)
    except (OSError, ImportError) as error:
        return dg.SkipReason(f"the inbox cannot be read: {error}")
    left = [f"{len(names)} {state}" for state, names in changes.as_dict().items() if state in ("waiting", "copies")]
    return _ingest(instance, "inbox", f"nothing new in the inbox ({', '.join(left)})" if left else "")


def hub_tick(instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    """Launch one run when a branch that the corpus follows has a new commit."""
    from plumbline.graph import intake

    if reading_the_corpus(instance):
        return dg.SkipReason(READING)
    try:
        new = intake.follow(workspace_root(), intake.hub_commit)
    except Exception as error:  # any network error: the next tick tries again
        return dg.SkipReason(f"the hub cannot be reached: {type(error).__name__}: {error}")
    return _ingest(instance, "hub") if new else dg.SkipReason("no followed dataset has a new revision")


def _ingest(instance: dg.DagsterInstance, trigger: str, why: str = "") -> dg.SensorResult | dg.SkipReason:
    """Launch the run that reads new intake, once."""
    from plumbline.graph.intake import request
    from plumbline.raw_corpus.intake import INTAKE
    from plumbline.versioning.digest import dvc_digest

    def launched(key: str) -> bool:
        return instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": key})) > 0

    root = workspace_root()
    run_request = request(root, launched)
    if run_request is None:
        return dg.SkipReason(why or "a run was launched for all intake")
    changes = {name: dg.MetadataValue.json(value) for name, value in run_request.changes.items()}
    tags = {"dagster/data_version": dvc_digest(root / INTAKE)}
    event = dg.AssetMaterialization(INBOX, metadata=changes, tags=tags)
    run = dg.RunRequest(run_key=run_request.key, tags={"plumbline/trigger": trigger})
    return dg.SensorResult(run_requests=[run], asset_events=[event])


def drift_tick(
    context: dg.SensorEvaluationContext, *, measure: str, recalibrate: str
) -> dg.SensorResult | dg.SkipReason:
    """Launch a measurement of the drift, or a re-calibration if the last measurement found drift.

    A state of the production folder is measured once, as soon as two ticks see the same state. Re-calibration runs once
    per champion and set of drifted metrics; a repetition would give the same result. Whether the new model is deployed
    is decided by the checks of `deployed_model`.

    Args:
        measure: name of the job that measures.
        recalibrate: name of the job that re-calibrates.
    """
    from plumbline.artifact import sha256_json
    from plumbline.graph.drift import result, subject
    from plumbline.tracking.registry import open_registry

    root = workspace_root()
    compared = subject(root, open_registry(root))
    if isinstance(compared, str):
        return dg.SkipReason(compared)
    if context.cursor != compared.key:
        context.update_cursor(compared.key)
        return dg.SkipReason("production texts or the champion changed; waiting until two ticks see the same state")
    measured = result(root, compared)
    if measured is None:
        return dg.SensorResult([dg.RunRequest(f"drift-{compared.key}", job_name=measure)], cursor=compared.key)
    if not measured["drifted"]:
        return dg.SkipReason(measured["sentence"])
    if reading_the_corpus(context.instance):
        return dg.SkipReason(READING)
    tags = {
        "plumbline/trigger": "drift",
        "plumbline/reason": measured["sentence"][:250],
        "plumbline/drift": ",".join(measured["metrics"])[:250],
    }
    key = sha256_json([compared.champion.model, sorted(measured["metrics"])])[:32]
    run = dg.RunRequest(f"recalibrate-{key}", job_name=recalibrate, tags=tags)
    return dg.SensorResult([run], cursor=compared.key)


def dvc_tick(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Report what `dvc repro`, `dvc checkout` or `dvc pull` changed since the last tick."""
    from plumbline.graph.definitions import load_definitions
    from plumbline.graph.reconcile import reconcile

    lock = workspace_root() / "dvc.lock"
    stamp = f"{lock.stat().st_mtime_ns}-{lock.stat().st_size}" if lock.is_file() else ""
    if stamp == (context.cursor or ""):
        return dg.SkipReason("dvc.lock has not changed")
    running = context.instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    if running:  # its steps report their output themselves, right after dvc.lock is written
        return dg.SkipReason(f"{running} runs in progress; they report their own output")
    names = reconcile(context.instance, load_definitions(workspace_root()))
    context.update_cursor(stamp)
    return dg.SkipReason(
        f"reported {len(names)} artifacts that DVC made: {names[:5]}"
        if names
        else "Dagster has every artifact in dvc.lock"
    )


def dead_run_tick(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Mark runs whose process no longer exists as failed."""
    from plumbline.graph.dead_runs import end_dead_runs
    from plumbline.graph.instance import dagster_home

    origin = context.code_location_origin
    ended = end_dead_runs(context.instance, dagster_home(), origin.location_name if origin else "")
    return dg.SkipReason(f"marked as failed: {ended}" if ended else "every started run has a living process")
