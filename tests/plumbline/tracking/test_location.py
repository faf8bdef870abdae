"""A copied or moved workspace writes its artifacts into itself."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import sha256_file
from plumbline.tracking.client import Tracking
from plumbline.tracking.location import follow
from plumbline.tracking.run_logging import LoggedRun
from plumbline.tracking.store import TrackingError
from tests.helpers.tracking import log_evaluation, mlflow_client

PNG = b"\x89PNG\r\n\x1a\n"


def tracking_of(root: Path) -> Tracking:
    return Tracking(f"sqlite:///{root / 'mlflow.db'}")


def log(root: Path, pair: str) -> LoggedRun:
    """An evaluation with a plot."""
    plot = root / "plot.png"
    plot.write_bytes(PNG + pair.encode())
    return log_evaluation(tracking_of(root), pair=pair, plots=[plot])


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one evaluation; its name has what LIKE and URIs treat specially."""
    root = tmp_path_factory.mktemp("place") / "a 100%_workspace ü"
    root.mkdir()
    log(root, "first")
    return root


def locations(root: Path) -> set[str]:
    with sqlite3.connect(root / "mlflow.db") as store:
        rows: list[Any] = store.execute("SELECT artifact_uri FROM runs").fetchall()
        rows += store.execute("SELECT artifact_location FROM experiments WHERE name = 'plumbline'").fetchall()
        rows += store.execute("SELECT artifact_location FROM logged_models").fetchall()
        rows += store.execute("SELECT storage_location FROM model_versions").fetchall()
    return {text.split("/mlruns")[0] for (text,) in rows}


def test_a_run_in_a_copy_writes_into_the_copy(original: Path, tmp_path: Path) -> None:
    root, copy = tmp_path / "original", tmp_path / "copy"
    shutil.copytree(original, root), log(root, "second")
    shutil.copytree(root, copy)
    before = files(root)
    logged = log(copy, "third")
    assert files(root) == before, "nothing of the original changed"
    stored = copy / "mlruns" / logged.run_id / "artifacts/plots/plot.png"
    assert stored.read_bytes() == PNG + b"third"
    assert locations(copy) == {copy.as_uri()} and locations(root) == {root.as_uri()}
    client = mlflow_client(tracking_of(copy))
    for run in client.search_runs([logged_experiment(copy)]):
        assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/plot.png"]


def logged_experiment(root: Path) -> str:
    return str(mlflow_client(tracking_of(root)).get_experiment_by_name("plumbline").experiment_id)


def test_a_moved_workspace_takes_its_artifacts_along(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "before"), log(tmp_path / "before", "second")
    (tmp_path / "before").rename(tmp_path / "after")
    log(tmp_path / "after", "third")
    assert not (tmp_path / "before").exists()
    assert locations(tmp_path / "after") == {(tmp_path / "after").as_uri()}
    assert follow(tmp_path / "after/mlflow.db") == []


@pytest.mark.parametrize("location", ["s3://bucket/mlruns", "mlflow-artifacts:/1", "{tmp}/elsewhere/mlruns", "mlruns"])
def test_a_location_that_somebody_chose_is_left_alone(original: Path, tmp_path: Path, location: str) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(original, root), log(root, "second")
    chosen = location.format(tmp=tmp_path.as_uri())
    (tmp_path / "elsewhere/mlruns").mkdir(parents=True)
    mlflow_client(tracking_of(root)).create_experiment("another", artifact_location=chosen)
    with sqlite3.connect(root / "mlflow.db") as store:  # MLflow makes a relative path absolute
        store.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'another'", (chosen,))
    assert follow(root / "mlflow.db") == []
    with sqlite3.connect(root / "mlflow.db") as store:
        assert store.execute("SELECT artifact_location FROM experiments WHERE name = 'another'").fetchall() == [
            (chosen,)
        ]


def test_a_store_that_cannot_be_corrected_is_an_error_that_says_so(original: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(original, root)
    with sqlite3.connect(root / "mlflow.db") as store:
        store.execute("CREATE TRIGGER stop BEFORE UPDATE ON experiments BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(TrackingError, match=r"mlflow\.db: the workspace was copied or moved.*\(no\); make the file"):
        log(root, "second")
    assert follow(tmp_path / "no.db") == [] and not (tmp_path / "no.db").exists()
