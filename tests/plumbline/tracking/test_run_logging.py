"""Evaluations in MLflow on SQLite; tests/integration/test_mlflow_server.py does the same over http."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plumbline.tracking.client import LOCAL_UI, Tracking
from plumbline.tracking.registry import Registry
from plumbline.tracking.run import RunRecord, flatten, metric_names
from plumbline.tracking.run_logging import log_run
from plumbline.tracking.store import TrackingError
from plumbline.tracking.view import TRAINING
from tests.helpers.paths import PROJECT
from tests.helpers.tracking import MD5, evaluation, log_evaluation, mlflow_client

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose path has a space; its tables are made once for all tests of this file."""
    return tmp_path_factory.mktemp("a workspace")


@pytest.fixture
def tracking(store: Path, request: pytest.FixtureRequest) -> Tracking:
    """An experiment and a registered model of the test's own."""
    name = request.node.name
    return Tracking(f"sqlite:///{store / 'mlflow.db'}", experiment=name, registered_model=name)


def test_a_parameter_named_after_a_domain_is_accepted(tracking: Tracking) -> None:
    quotas = {"c++": 0.5, "c#!": 0.25, "<b>$x": 0.25}
    logged = log_evaluation(tracking, choice={"name": "random-64", "quotas": quotas})
    params = mlflow_client(tracking).get_run(logged.run_id).data.params
    found = {name: value for name, value in params.items() if name.startswith("choice.quotas")}
    assert found == {"choice.quotas.c__": "0.5", "choice.quotas.c___2": "0.25", "choice.quotas._b__x": "0.25"}


def test_a_record_holds_parameters_metrics_hashes_dataset_and_plots(tracking: Tracking, store: Path) -> None:
    plot = store / "kl_histogram.png"
    plot.write_bytes(PNG)
    logged = log_evaluation(tracking, plots=[plot])

    run = mlflow_client(tracking).get_run(logged.run_id)
    assert logged.url == f"{LOCAL_UI}/#/experiments/{run.info.experiment_id}/runs/{logged.run_id}?{TRAINING}"
    assert run.info.run_name == "random-64-w4a16-gptq"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "choice.name": "random-64",
        "choice.strategy": "random",
        "choice.n": "64",
        "choice.domains": "null",
        "choice.options.seed": "0",
        "scheme.method": "gptq",
        "scheme.weight_bits": "4",
    }
    assert run.data.metrics == {
        "kl_mean": 0.125,
        "kl_mean/prose": 0.25,
        "kl_mean/c__": 0.5,
        "count/samples": 64.0,
        "count/lost/too_short/tokens": 7.0,
    }
    expected = {
        "dvc.stage": "evaluation@random-64-w4a16-gptq",
        "dvc.md5": MD5["evaluation"],
        "model.md5": MD5["model"],
        "calibration.md5": MD5["calibration"],
        "hash.fingerprint": "f" * 64,
        "hash.base_model": "b" * 64,
        "dagster.run_id": "run-1",
        "code_version": "0123456789ab",
        "model_version": logged.version,
    }
    assert expected.items() <= run.data.tags.items()
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("random-64", MD5["calibration"])
    assert (used.dataset.source_type, json.loads(used.dataset.source)) == (
        "local",
        {"uri": "data/calibration_set/random-64"},
    )
    assert (used.dataset.profile, used.dataset.schema) == ('{"num_rows": 64}', None)
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "calibration")]
    stored = store / "mlruns" / logged.run_id / "artifacts" / "plots" / "kl_histogram.png"
    assert stored.read_bytes() == PNG  # beside the database, not in the working directory
    assert not (Path.cwd() / "mlruns" / logged.run_id).exists()


def test_the_registered_version_points_at_the_model_without_copying_it(tracking: Tracking) -> None:
    logged = log_evaluation(tracking)
    [version] = mlflow_client(tracking).search_model_versions(f"name = '{tracking.registered_model}'")
    assert (str(version.version), version.run_id, version.source[:8]) == (logged.version, logged.run_id, "models:/")
    assert version.tags["path"] == "data/quantized_model/random-64-w4a16-gptq"
    assert version.tags["model.md5"] == MD5["model"]
    assert version.tags["calibration.md5"] == MD5["calibration"]


def test_runs_sort_by_a_metric_and_filter_by_calibration_set(tracking: Tracking) -> None:
    for i, kl in enumerate((0.3, 0.1, 0.2)):
        log_evaluation(tracking, pair=f"p{i}", metrics={"kl_mean": kl})
    store = mlflow_client(tracking)
    ids = [store.get_experiment_by_name(tracking.experiment).experiment_id]
    order = [run.info.run_name for run in store.search_runs(ids, order_by=["metrics.kl_mean ASC"])]
    assert order == ["p1", "p2", "p0"]
    assert len(store.search_runs(ids, f"dataset.digest = '{MD5['calibration']}'")) == 3
    assert not store.search_runs(ids, f"dataset.digest = '{MD5['other']}'")


def test_the_same_evaluation_is_found_again(tracking: Tracking) -> None:
    first = log_evaluation(tracking)
    assert log_evaluation(tracking, dagster_run_id="run-2") == first
    assert log_evaluation(tracking, model_md5=MD5["other"]) != first
    assert log_evaluation(tracking, dvc_md5=MD5["other"]) != first
    store = mlflow_client(tracking)
    assert len(store.search_runs([store.get_experiment_by_name(tracking.experiment).experiment_id])) == 3
    assert len(store.search_model_versions(f"name = '{tracking.registered_model}'")) == 3


def test_a_record_that_fails_is_marked_and_made_again(tracking: Tracking, store: Path) -> None:
    with pytest.raises(Exception, match=r"nowhere\.png"):
        log_evaluation(tracking, plots=[store / "nowhere.png"])
    log_evaluation(tracking)
    client = mlflow_client(tracking)
    runs = client.search_runs([client.get_experiment_by_name(tracking.experiment).experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


WRITES = (
    "create_run", "log_inputs", "create_logged_model", "finalize_logged_model", "log_outputs", "log_batch",
    "log_artifact", "create_registered_model", "create_model_version", "set_tag", "set_terminated",
)  # fmt: skip
"""Every write of a run with its version, in order."""


class Killed(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def killed_at(write: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process ends before this write: it writes nothing any more."""
    from mlflow import MlflowClient

    dead = False
    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        for each, write_it in [(name, getattr(MlflowClient, name)) for name in WRITES]:

            def call(*arguments: Any, name: str = each, do: Any = write_it, **options: Any) -> Any:
                nonlocal dead
                dead |= name == write
                if dead:
                    raise Killed
                return do(*arguments, **options)

            patched.setattr(MlflowClient, each, call)
        yield
    assert dead, f"{write} is not called"


@pytest.mark.parametrize("write", WRITES)
def test_wherever_a_process_was_killed_there_is_one_version(
    write: str, tracking: Tracking, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its host name or process id was: only the lock tells who lives."""
    plot = store / "plot.png"
    plot.write_bytes(PNG)
    with killed_at(write, monkeypatch):
        log_evaluation(tracking, plots=[plot])
    logged = log_evaluation(tracking, plots=[plot])
    assert log_evaluation(tracking, plots=[plot]) == logged
    client = mlflow_client(tracking)
    runs = client.search_runs([client.get_experiment_by_name(tracking.experiment).experiment_id])
    registered = WRITES.index(write) > WRITES.index("create_model_version")
    assert sorted(run.info.status for run in runs) == (
        ["FINISHED"] if registered or write == "create_run" else ["FINISHED", "KILLED"]
    )
    [version] = client.search_model_versions(f"name = '{tracking.registered_model}'")
    assert (str(version.version), version.run_id) == (logged.version, logged.run_id)
    run = client.get_run(logged.run_id)
    assert run.data.tags["model_version"] == logged.version and run.data.metrics["kl_mean"] == 0.125
    assert [file.path for file in client.list_artifacts(logged.run_id, "plots")] == ["plots/plot.png"]


def test_a_run_of_an_earlier_plumbline_that_was_killed_on_another_host_is_ended(tracking: Tracking) -> None:
    with tracking.client() as client:
        tags = evaluation().as_run().identity | {"recorder": f"another-host:{os.getpid()}"}
        dead = client.create_run(tracking.experiment_id(client), tags=tags).info.run_id
    logged = log_evaluation(tracking)
    client = mlflow_client(tracking)
    assert client.get_run(dead).info.status == "KILLED" and client.get_run(logged.run_id).info.status == "FINISHED"


def test_the_children_of_a_run_that_was_killed_are_ended(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunRecord("study", {"dvc.stage": "study"}, children=[RunRecord("arm", metrics={"x": 1.0}), RunRecord("b")])
    with killed_at("log_batch", monkeypatch):
        log_run(tracking, record)  # killed within the first child
    log_run(tracking, record)
    client = mlflow_client(tracking)
    runs = client.search_runs([client.get_experiment_by_name(tracking.experiment).experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        ("arm", "FINISHED"), ("arm", "KILLED"), ("b", "FINISHED"), ("study", "FINISHED"), ("study", "KILLED"),
    ]  # fmt: skip


def test_what_the_registry_lost_is_registered_again(tracking: Tracking) -> None:
    logged, other = log_evaluation(tracking), log_evaluation(tracking, pair="other")
    client = mlflow_client(tracking)
    client.delete_registered_model(tracking.registered_model)
    assert log_evaluation(tracking, pair="other") == replace(other, version="1")
    again = log_evaluation(tracking)
    assert again == replace(logged, version="2")
    assert client.get_run(logged.run_id).data.tags["model_version"] == "2"
    versions = client.search_model_versions(f"name = '{tracking.registered_model}'")
    assert {(str(v.version), v.run_id, v.tags["model.md5"]) for v in versions} == {
        ("1", other.run_id, MD5["model"]),
        ("2", logged.run_id, MD5["model"]),
    }
    client.delete_run(logged.run_id)
    assert log_evaluation(tracking).version == "2", "the content has a version, whatever became of its run"


def test_of_two_workspaces_that_register_at_once_on_a_server_the_first_wins(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share no lock. Each looks again after it has registered."""
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def beaten(self: Any, name: str, *arguments: Any, **options: Any) -> Any:
        create(self, name, *arguments, **options)  # by the other workspace
        return create(self, name, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_model_version", beaten)
        logged = log_evaluation(tracking)
    client = mlflow_client(tracking)
    assert logged.version == "1"
    assert [str(v.version) for v in client.search_model_versions(f"name = '{tracking.registered_model}'")] == ["1"]


def test_a_deleted_experiment_is_an_error_that_says_so(tracking: Tracking) -> None:
    log_evaluation(tracking)
    store = mlflow_client(tracking)
    store.delete_experiment(store.get_experiment_by_name(tracking.experiment).experiment_id)
    with pytest.raises(TrackingError, match="was deleted; restore it"):
        log_evaluation(tracking, pair="next")


def test_the_environment_is_left_as_it_was(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_evaluation(tracking)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # a second workspace in this process would write into this one


OPEN = """
import sys
from plumbline.tracking.client import Tracking
from tests.helpers.paths import PROJECT
from tests.helpers.tracking import log_evaluation
log_evaluation(Tracking(sys.argv[1]), pair=sys.argv[2])
"""


def test_processes_may_create_the_store_and_register_the_same_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    pairs = ("p0", "p1", "p1")
    processes = [subprocess.Popen([sys.executable, "-c", OPEN, uri, pair], cwd=PROJECT) for pair in pairs]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sorted(version.pair for version in Registry(Tracking(uri)).versions()) == ["p0", "p1"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns", "/data/mlruns", "file:///data", ""])
def test_an_address_that_depends_on_the_working_directory_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri"):
        Tracking(uri)


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, plumbline.tracking.client; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_metric_names_are_made_acceptable_and_stay_apart() -> None:
    metrics = {"a/b": 1, "kl/c++": 2, "kl/c##": 3, "/x": 4, "a/../b": 5, "ünï": 6.5}
    assert metric_names(metrics) == {"a/b": 1, "kl/c__": 2, "kl/c___2": 3, "_/x": 4, "a/_/b": 5, "ünï": 6.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", None, True])
def test_a_metric_that_cannot_be_sorted_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match="'kl_mean': expected a finite number"):
        metric_names({"kl_mean": value})


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}


def test_the_page_of_a_run() -> None:
    page = f"/#/experiments/7/runs/abc?{TRAINING}"  # without the last part, MLflow shows the pages of traces around it
    assert Tracking("http://tracking:5000/").run_url("7", "abc") == f"http://tracking:5000{page}"
    assert Tracking("sqlite:////w/mlflow.db").run_url("7", "abc") == f"{LOCAL_UI}{page}"


def test_a_store_is_opened_once(tracking: Tracking) -> None:
    """Opening takes seconds, a further record hundredths of one."""
    with tracking.client() as first, tracking.client() as second:
        assert first is second
