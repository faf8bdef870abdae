"""What starts runs by itself: the inbox, new inputs, and what DVC made behind Dagster's back."""

from __future__ import annotations

import dagster as dg

from assets.production_drift import production_drift
from assets.raw_corpus import inbox, raw_corpus
from assets.sample_features import sample_features
from assets.tokenized_samples import tokenized_samples
from plumbline.workspace import workspace_root

STUDY_NAME = "run_study"
INGEST = dg.define_asset_job(
    "ingest",
    # Objects, not strings: string selections depend on the version of antlr that is installed.
    selection=dg.AssetSelection.assets(raw_corpus, tokenized_samples, sample_features),
    description="Reads new source files, tokenizes and embeds what is new. What depends on it follows by automation.",
)


MEASURE_DRIFT = dg.define_asset_job(
    "measure_drift",
    selection=dg.AssetSelection.assets(production_drift),
    description="Compares today's production texts with the champion's calibration set.",
)
UNFINISHED = [
    status for status in dg.DagsterRunStatus if status not in (
        dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED
    )
]  # fmt: skip


READING = "a run is reading the corpus; what is new waits for its end"


def _reading_the_corpus(instance: dg.DagsterInstance) -> bool:
    """Whether a run that reads intake.yaml is waiting or running: it must not change under it."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    failed = dg.RunsFilter(tags={"dagster/will_retry": "true"}, statuses=[dg.DagsterRunStatus.FAILURE])
    # A run whose process was killed runs again, a moment after it was found dead.
    runs = [*runs, *(run for run in instance.get_runs(failed, limit=9) if "dagster/auto_retry_run_id" not in run.tags)]
    return any(
        "front_door" in run.tags or (run.asset_selection or {raw_corpus.key}) & {raw_corpus.key}
        for run in runs
        if run.job_name != STUDY_NAME
    )


def _launch(context: dg.SensorEvaluationContext, trigger: str, why: str = "") -> dg.SensorResult | dg.SkipReason:
    """The `ingest` run for what was taken in and no run has read, once."""
    from plumbline.graph.intake import request
    from plumbline.raw_corpus.intake import INTAKE
    from plumbline.versioning.digest import content_md5

    def launched(key: str) -> bool:
        return context.instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": key})) > 0

    asked = request(workspace_root(), launched)
    if asked is None:
        return dg.SkipReason(why or "everything that was taken in has its run")
    digest = content_md5(workspace_root() / INTAKE)
    changes = {name: dg.MetadataValue.json(value) for name, value in asked.changes.items()}
    event = dg.AssetMaterialization(inbox.key, metadata=changes, tags={"dagster/data_version": digest})
    tags = {"plumbline/trigger": trigger}
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=asked.key, tags=tags)], asset_events=[event])


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new, changed or deleted file in the inbox leads to one run. A file that is still being written "
    "waits, and holds up no other; the same content again, under whatever name, leads to none.",
)
def inbox_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One `ingest` run for every change of what the inbox holds (orchestration/intake.py)."""
    from filelock import Timeout

    from plumbline.graph.intake import take_in_settled

    if _reading_the_corpus(context.instance):
        return dg.SkipReason(READING)
    try:
        changes = take_in_settled(workspace_root())
    except Timeout:
        return dg.SkipReason(READING)
    except (OSError, ImportError) as error:
        return dg.SkipReason(f"the inbox cannot be read: {error}")
    kept = [f"{len(names)} {what}" for what, names in changes.as_dict().items() if what in ("waiting", "copies")]
    return _launch(context, "inbox", f"nothing new in the inbox ({', '.join(kept)})" if kept else "")


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=3600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new revision of a Hugging Face dataset that `corpus` follows (`follow: main`) leads to a run.",
)
def hub_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One `ingest` run when a followed branch has a new commit."""
    from plumbline.graph.intake import follow, hub_commit

    if _reading_the_corpus(context.instance):
        return dg.SkipReason(READING)
    try:
        new = follow(workspace_root(), hub_commit)
    except Exception as error:  # whatever the network does: the next look comes
        return dg.SkipReason(f"the hub cannot be asked: {type(error).__name__}: {error}")
    return _launch(context, "hub") if new else dg.SkipReason("no dataset that is followed has a new revision")


@dg.sensor(
    jobs=[MEASURE_DRIFT, INGEST],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="New production texts are compared with the champion's calibration set; past the limits a run "
    "calibrates anew, and its tags say why.",
)
def drift_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One measurement per state of the production folder, once two looks agree; one re-calibration per champion and
    kind of drift: what it led to is for the checks of `deployed_model` to judge, and doing it again changes nothing.
    """
    from plumbline.artifact import sha256_json
    from plumbline.graph.drift import result, subject
    from plumbline.tracking.registry import open_registry

    root = workspace_root()
    of = subject(root, open_registry(root))
    if isinstance(of, str):
        return dg.SkipReason(of)
    if context.cursor != of.key:
        context.update_cursor(of.key)
        return dg.SkipReason("production texts or the champion changed; waiting until two looks agree")
    found = result(root, of)
    if found is None:
        return dg.SensorResult([dg.RunRequest(f"drift-{of.key}", job_name=MEASURE_DRIFT.name)], cursor=of.key)
    if not found["drifted"]:
        return dg.SkipReason(found["sentence"])
    if _reading_the_corpus(context.instance):
        return dg.SkipReason(READING)
    tags = {
        "plumbline/trigger": "drift",
        "plumbline/reason": found["sentence"][:250],
        "plumbline/drift": ",".join(found["metrics"])[:250],
    }
    key = sha256_json([of.champion.model, sorted(found["metrics"])])[:32]
    return dg.SensorResult([dg.RunRequest(f"recalibrate-{key}", job_name=INGEST.name, tags=tags)], cursor=of.key)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place.",
)
def dvc_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason | None:
    """Reports to Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place."""
    from plumbline.graph.definitions import load_definitions
    from plumbline.graph.reconcile import reconcile

    lock = workspace_root() / "dvc.lock"
    stamp = f"{lock.stat().st_mtime_ns}-{lock.stat().st_size}" if lock.is_file() else ""
    if stamp == (context.cursor or ""):
        return dg.SkipReason("dvc.lock has not changed")
    running = context.instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    if running:  # its steps report their own output right after dvc.lock is written
        return dg.SkipReason(f"{running} runs in progress; they report by themselves")
    names = reconcile(context.instance, load_definitions(workspace_root()))
    context.update_cursor(stamp)
    return dg.SkipReason(f"reported {len(names)} artifacts that DVC made: {names[:5]}" if names else "all known")


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process was killed, so that the queue goes on.",
)
def dead_run_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Marks runs as failed whose process was killed. Without it they stay "started", and the queue waits for them."""
    from plumbline.graph.dead_runs import end_dead_runs

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
    STUDY_NAME,
    dg.AssetSelection.assets("study"),
    description="Measure and judge the studies that were asked for (`plumbline study`); each goes on where it stopped.",
)
JOBS = [INGEST, MEASURE_DRIFT, STUDY]
SENSORS = [inbox_sensor, hub_sensor, drift_sensor, dvc_sensor, dead_run_sensor, automation]
