"""What MLflow shows of a version is read alike from its tables and through its client."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from plumbline.tracking.client import Tracking
from plumbline.tracking.details import ClientDetails, Dataset, Details, SqliteDetails, details_reader
from plumbline.tracking.reading import ClientReader, SqliteReader
from tests.helpers.tracking import MD5, evaluation, log_evaluation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Details, Details, str]:
    """Both readers of a store with one evaluation, and the id of its run."""
    path = tmp_path_factory.mktemp("details") / "mlflow.db"
    tracking = Tracking(f"sqlite:///{path}")
    run = log_evaluation(tracking).run_id
    return details_reader(SqliteReader(path)), details_reader(ClientReader(tracking)), run


def test_both_readers_agree(store: tuple[Details, Details, str]) -> None:
    tables, client, run_id = store
    assert isinstance(tables, SqliteDetails) and isinstance(client, ClientDetails)
    version, run = tables.version("plumbline", "1"), tables.run(run_id)
    assert version is not None and version == client.version("plumbline", "1")
    assert run is not None and replace(run, logged={}) == client.run(run_id)
    model = tables.logged_model(version.source.removeprefix("models:/"))
    assert model is not None and model == client.logged_model(model.model_id)
    assert tables.description("plumbline") == client.description("plumbline") != ""


def test_what_is_read_is_what_was_logged(store: tuple[Details, Details, str]) -> None:
    tables, _, run_id = store
    version, run = tables.version("plumbline", "1"), tables.run(run_id)
    assert version is not None and run is not None
    model = tables.logged_model(version.source.removeprefix("models:/"))
    assert model is not None
    assert (version.status, version.location, model.status, model.run_id) == ("READY", model.location, "READY", run_id)
    assert model.location == f"{model.experiment_location}/models/{model.model_id}/artifacts"
    assert model.tags["model.md5"] == MD5["model"] and model.metrics["kl_mean/prose"] == 0.25
    logged = evaluation().as_run().dataset
    assert logged is not None
    assert run.datasets == (Dataset(logged.name, logged.digest, logged.path, "calibration"),)
    assert run.models == (model.model_id,) and not run.deleted and run.logged["kl_mean"] == {0.125}
    assert run.location == f"{run.experiment_location}/{run_id}/artifacts"


def test_what_is_not_there_is_none(store: tuple[Details, Details, str]) -> None:
    for reader in store[:2]:
        assert reader.version("plumbline", "9") is None
        assert reader.run("0" * 32) is None
        assert reader.logged_model(f"m-{'0' * 32}") is None
        assert reader.description("nobody") == ""


def test_a_read_only_client_leaves_a_moved_store_as_it_is(tmp_path: Path) -> None:
    log_evaluation(Tracking(f"sqlite:///{tmp_path / 'one' / 'mlflow.db'}"))
    (tmp_path / "one").rename(tmp_path / "two")
    path = tmp_path / "two" / "mlflow.db"
    before = path.read_bytes()
    reader = ClientReader(Tracking(f"sqlite:///{path}", read_only=True))
    assert [version.version for version in reader.versions("plumbline")] == ["1"]
    assert path.read_bytes() == before
    with Tracking(f"sqlite:///{path}").client():
        database = sqlite3.connect(path)
        [(location,)] = database.execute("SELECT artifact_location FROM experiments WHERE name = 'plumbline'")
        database.close()
    assert location == (tmp_path / "two" / "mlruns").as_uri()
