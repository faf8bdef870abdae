"""The jobs: what each one runs, and which of them the inbox waits for."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from orchestration.definitions import defs
from orchestration.jobs import INGEST, JOBS, MEASURE_DRIFT, STUDY
from orchestration.schedules import SCHEDULES
from orchestration.sensors import SENSORS
from plumbline.graph import run as graph_run
from plumbline.graph.sensor_ticks import reading_the_corpus

SELECTED = {
    "ingest": {"raw_corpus", "tokenized_samples", "sample_features"},
    "measure_drift": {"production_drift"},
    "run_study": {"study"},
    "serve_check": set(),
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_each_job_selects_its_assets_and_says_what_it_does() -> None:
    graph = defs.resolve_asset_graph()
    asset_jobs = [job for job in JOBS if not isinstance(job, dg.JobDefinition)]
    assert {job.name: {key.to_user_string() for key in job.selection.resolve(graph)} for job in asset_jobs} == SELECTED
    assert all(job.description for job in JOBS)


def test_there_is_a_job_for_everything_and_one_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on request (study) and what is not made (inbox) belong to none."""
    taken: dict[str, list[str]] = {}
    graph = defs.resolve_asset_graph()
    for job in JOBS:
        if isinstance(job, dg.JobDefinition):
            monkeypatch.setattr(
                graph_run, "run_graph", lambda root, only, announce, name=job.name: taken.update({name: only})
            )
            assert defs.resolve_job_def(job.name).execute_in_process().success
    assert taken.pop("everything") == []
    of_groups = [*map(set, taken.values()), SELECTED["ingest"], SELECTED["measure_drift"]]
    groups: dict[str, set[str]] = {}
    for key in graph.executable_asset_keys - {dg.AssetKey("study")}:
        groups.setdefault(str(graph.get(key).group_name), set()).add(key.to_user_string())
    assert sorted(map(sorted, of_groups)) == sorted(map(sorted, groups.values()))


def test_a_job_that_fails_says_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise graph_run.RunFailed("raw_corpus: texts/a.txt is empty")

    monkeypatch.setattr(graph_run, "run_graph", fails)
    monkeypatch.setitem(fails.__globals__, "__name__", "plumbline.graph.run")  # whose `raise` it stands for
    result = defs.resolve_job_def("everything").execute_in_process(raise_on_error=False)
    [event] = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data.description == "raw_corpus: texts/a.txt is empty"


def test_schedules_are_off_until_somebody_switches_them_on() -> None:
    assert {schedule.name: schedule.job_name for schedule in SCHEDULES} == {
        "nightly": "everything",
        "weekly_drift": "measure_drift",
    }
    assert {schedule.default_status for schedule in SCHEDULES} == {dg.DefaultScheduleStatus.STOPPED}
    assert [*(defs.schedules or ())] == SCHEDULES and all(schedule.description for schedule in SCHEDULES)


def test_the_definitions_hold_the_jobs_and_what_launches_them() -> None:
    for job in JOBS:
        assert defs.resolve_job_def(job.name).name == job.name
    targets = {
        sensor.name: {target.job_name for target in sensor.targets}
        for sensor in SENSORS
        if sensor.name in ("inbox_sensor", "hub_sensor", "drift_sensor")
    }
    assert targets == {
        "inbox_sensor": {INGEST.name},
        "hub_sensor": {INGEST.name},
        "drift_sensor": {MEASURE_DRIFT.name, INGEST.name},
    }


@pytest.mark.parametrize(("job", "waits"), [(INGEST, True), (MEASURE_DRIFT, True), (STUDY, False)])
def test_the_inbox_waits_for_jobs_that_read_the_corpus(
    job: dg.UnresolvedAssetJobDefinition, waits: bool, instance: dg.DagsterInstance
) -> None:
    instance.add_run(dg.DagsterRun(job_name=job.name, status=dg.DagsterRunStatus.STARTED))
    assert reading_the_corpus(instance) is waits


@pytest.mark.parametrize(("asset", "waits"), [("raw_corpus", True), ("evaluation", False)])
def test_of_single_assets_the_inbox_waits_for_the_corpus(asset: str, waits: bool, instance: dg.DagsterInstance) -> None:
    selection = frozenset({dg.AssetKey(asset)})
    run = dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=selection, status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    assert reading_the_corpus(instance) is waits


def test_a_killed_run_is_waited_for_until_its_retry_exists(instance: dg.DagsterInstance) -> None:
    tags = {"dagster/will_retry": "true"}
    failed = dg.DagsterRun(job_name=INGEST.name, tags=tags, status=dg.DagsterRunStatus.FAILURE)
    instance.add_run(failed)
    assert reading_the_corpus(instance)
    instance.add_run_tags(failed.run_id, {"dagster/auto_retry_run_id": "the next one"})
    assert not reading_the_corpus(instance)
