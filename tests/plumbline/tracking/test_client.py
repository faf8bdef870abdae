"""Runs and versions in MLflow on SQLite; tests/integration/test_mlflow_server.py does the same over http."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plumbline.tracking.client import Tracking, TrackingError, flatten, metric_names
from tests.helpers.paths import PROJECT
from tests.helpers.tracking import MD5, client, evaluation

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


def test_a_record_holds_parameters_metrics_hashes_dataset_and_plots(tracking: Tracking, store: Path) -> None:
    plot = store / "kl_histogram.png"
    plot.write_bytes(PNG)
    run_id, version = tracking.record_evaluation(**evaluation(plots=[plot]))

    run = client(tracking).get_run(run_id)
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
        "model_version": version,
    }
    assert expected.items() <= run.data.tags.items()
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("random-64", MD5["calibration"])
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "calibration")]
    stored = store / "mlruns" / run_id / "artifacts" / "plots" / "kl_histogram.png"
    assert stored.read_bytes() == PNG  # beside the database, not in the working directory
    assert not (Path.cwd() / "mlruns").exists() or run_id not in {p.name for p in (Path.cwd() / "mlruns").iterdir()}


def test_the_registered_version_points_at_the_model_without_copying_it(tracking: Tracking) -> None:
    run_id, version = tracking.record_evaluation(**evaluation())
    [found] = client(tracking).search_model_versions(f"name = '{tracking.registered_model}'")
    assert (str(found.version), found.run_id, found.source[:8]) == (version, run_id, "models:/")
    assert found.tags["path"] == "data/quantized_model/random-64-w4a16-gptq"
    assert found.tags["model.md5"] == MD5["model"]
    assert found.tags["calibration.md5"] == MD5["calibration"]


def test_runs_sort_by_a_metric_and_filter_by_calibration_set(tracking: Tracking) -> None:
    for i, kl in enumerate((0.3, 0.1, 0.2)):
        tracking.record_evaluation(**evaluation(pair=f"p{i}", metrics={"kl_mean": kl}))
    store = client(tracking)
    ids = [store.get_experiment_by_name(tracking.experiment).experiment_id]
    order = [run.info.run_name for run in store.search_runs(ids, order_by=["metrics.kl_mean ASC"])]
    assert order == ["p1", "p2", "p0"]
    assert len(store.search_runs(ids, f"dataset.digest = '{MD5['calibration']}'")) == 3
    assert not store.search_runs(ids, f"dataset.digest = '{MD5['other']}'")


def test_the_same_evaluation_is_found_again(tracking: Tracking) -> None:
    first = tracking.record_evaluation(**evaluation())
    assert tracking.record_evaluation(**evaluation(dagster_run_id="run-2")) == first
    assert tracking.record_evaluation(**evaluation(model_md5=MD5["other"])) != first
    assert tracking.record_evaluation(**evaluation(dvc_md5=MD5["other"])) != first
    store = client(tracking)
    assert len(store.search_runs([store.get_experiment_by_name(tracking.experiment).experiment_id])) == 3
    assert len(store.search_model_versions(f"name = '{tracking.registered_model}'")) == 3


def test_a_record_that_fails_is_marked_and_made_again(tracking: Tracking, store: Path) -> None:
    with pytest.raises(Exception, match=r"nowhere\.png"):
        tracking.record_evaluation(**evaluation(plots=[store / "nowhere.png"]))
    tracking.record_evaluation(**evaluation())
    runs = client(tracking).search_runs([client(tracking).get_experiment_by_name(tracking.experiment).experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


CRASH = """
import os, sys
from plumbline.tracking.client import Tracking
from mlflow import MlflowClient
MlflowClient.set_terminated = lambda *_, **__: os._exit(9)
import json
Tracking(*sys.argv[1:4]).record_evaluation(**json.loads(sys.argv[4]))
"""


def test_a_run_whose_process_was_killed_is_no_hit_and_leaves_no_version(tracking: Tracking) -> None:
    arguments = [tracking.uri, tracking.experiment, tracking.registered_model, json.dumps(evaluation())]
    tracking.record_evaluation(**evaluation(pair="unrelated"))
    died = subprocess.run([sys.executable, "-c", CRASH, *arguments], cwd=PROJECT, capture_output=True)
    assert died.returncode == 9, died.stderr.decode()

    _, version = tracking.record_evaluation(**evaluation())
    store = client(tracking)
    runs = store.search_runs(
        [store.get_experiment_by_name(tracking.experiment).experiment_id], "tags.`dvc.stage` != 'evaluation@unrelated'"
    )
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    versions = store.search_model_versions(f"name = '{tracking.registered_model}' and tags.pair != 'unrelated'")
    assert [str(v.version) for v in versions] == [version]


def test_a_model_that_was_never_registered_is_named(tracking: Tracking) -> None:
    tracking.record_evaluation(**evaluation())
    with pytest.raises(TrackingError, match=f"{MD5['unregistered']}.*evaluate the model"):
        tracking.trace(MD5["unregistered"])
    with pytest.raises(TrackingError, match="@nobody"):
        tracking.trace(alias="nobody")


def test_a_deleted_experiment_is_an_error_that_says_so(tracking: Tracking) -> None:
    tracking.record_evaluation(**evaluation())
    store = client(tracking)
    store.delete_experiment(store.get_experiment_by_name(tracking.experiment).experiment_id)
    with pytest.raises(TrackingError, match="was deleted; restore it"):
        tracking.record_evaluation(**evaluation(pair="next"))


def test_the_environment_is_left_as_it_was(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.record_evaluation(**evaluation())
    assert "MLFLOW_TRACKING_URI" not in os.environ  # a second workspace in this process would write into this one


OPEN = """
import sys
from plumbline.tracking.client import Tracking
Tracking(sys.argv[1]).record_evaluation(**__import__("json").loads(sys.argv[2]))
"""


def test_two_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    both = [
        subprocess.Popen([sys.executable, "-c", OPEN, uri, json.dumps(evaluation(pair=pair))], cwd=PROJECT)
        for pair in ("p0", "p1")
    ]
    assert [process.wait() for process in both] == [0, 0]
    t = Tracking(uri)
    assert {t.trace(version=v)["pair"] for v in ("1", "2")} == {"p0", "p1"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns", "/data/mlruns", "file:///data", ""])
def test_an_address_that_depends_on_the_working_directory_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri"):
        Tracking(uri)


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, plumbline.tracking.client; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_metric_names_are_made_acceptable_and_stay_apart() -> None:
    given = {"a/b": 1, "kl/c++": 2, "kl/c##": 3, "/x": 4, "a/../b": 5, "ünï": 6.5}
    assert metric_names(given) == {"a/b": 1, "kl/c__": 2, "kl/c___2": 3, "_/x": 4, "a/_/b": 5, "ünï": 6.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", None, True])
def test_a_metric_that_cannot_be_sorted_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match="'kl_mean': expected a finite number"):
        metric_names({"kl_mean": value})


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}


def test_hint_and_run_url_say_where_to_look(tracking: Tracking) -> None:
    run_id, _ = tracking.record_evaluation(**evaluation())
    assert "make mlflow" in tracking.hint()
    assert Tracking("http://tracking:5000/").hint().startswith("http://tracking:5000/#/experiments")
    assert tracking.run_url(run_id).endswith(f"/runs/{run_id}")


def test_a_store_is_opened_once(tracking: Tracking) -> None:
    """Opening takes seconds, a further record hundredths of one."""
    with tracking.client() as first, tracking.client() as second:
        assert first is second
