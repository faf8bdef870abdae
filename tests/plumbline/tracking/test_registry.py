"""Registered versions on a real SQLite store, through MLflow's client and without it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import ModelUri
from plumbline.tracking.reading import ClientReader, SqliteReader, reader
from plumbline.tracking.registry import ALIAS, Registry
from plumbline.tracking.run_logging import LoggedRun
from plumbline.tracking.store import TrackingError
from tests.helpers.tracking import log_evaluation, mlflow_client

COUNT = 11


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return Tracking(f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(tracking: Tracking) -> list[LoggedRun]:
    """A version of each of eleven evaluations; version 3 is the champion, the last two are of one model."""
    runs = [
        log_evaluation(tracking, pair=f"p{n}", dvc_md5=f"evaluation-{n}", model_md5=f"model-{min(n, COUNT - 1)}")
        for n in range(1, COUNT + 1)
    ]
    mlflow_client(tracking).set_registered_model_alias(tracking.registered_model, ALIAS, "3")
    return runs


@pytest.fixture(params=["client", "tables"])
def registry(tracking: Tracking, runs: list[LoggedRun], request: pytest.FixtureRequest) -> Registry:
    return Registry(tracking, ClientReader(tracking, page=2) if request.param == "client" else reader(tracking))


@pytest.mark.parametrize("page", [1, 2, 5, COUNT - 1, COUNT, COUNT + 1, 1000])
def test_every_version_is_listed_however_many_fit_a_page(page: int, tracking: Tracking, runs: list[LoggedRun]) -> None:
    versions = Registry(tracking, ClientReader(tracking, page)).versions()
    assert [version.version for version in versions] == [str(n) for n in range(1, COUNT + 1)]
    assert [version.pair for version in versions] == [f"p{n}" for n in range(1, COUNT + 1)]
    assert [version.version for version in versions if version.aliases] == ["3"]


def test_a_version_is_found_by_number_alias_model_and_run(registry: Registry, runs: list[LoggedRun]) -> None:
    third = registry.versions()[2]
    assert third.aliases == (ALIAS,) and third.run_id == runs[2].run_id
    assert registry.version("3") == registry.champion() == registry.of_model("model-3") == third
    assert registry.resolve(ModelUri("plumbline", alias=ALIAS)) == registry.of_run(runs[2].run_id) == third
    assert registry.of_model("model-10").version == str(COUNT)  # the newest of the two
    run = registry.run(runs[2].run_id)
    assert (run.name, run.metrics["kl_mean"], run.params["choice.n"]) == ("p3", 0.125, "64")


def test_what_is_not_there_is_named(registry: Registry, tracking: Tracking) -> None:
    with pytest.raises(TrackingError, match=r"models:/plumbline/99: .* has no such version"):
        registry.version("99")
    with pytest.raises(TrackingError, match=r"models:/plumbline@nobody: .* has no such version"):
        registry.resolve(ModelUri("plumbline", alias="nobody"))
    with pytest.raises(TrackingError, match="unregistered; evaluate the model first"):
        registry.of_model("unregistered")
    with pytest.raises(TrackingError, match=f"has no run {'0' * 32}"):
        registry.of_run("0" * 32)
    client = mlflow_client(tracking)
    other = client.create_run(client.get_experiment_by_name(tracking.experiment).experiment_id).info.run_id
    with pytest.raises(TrackingError, match=f"{other} .* registered no version"):
        registry.of_run(other)


def test_a_model_that_nobody_registered_has_no_versions(registry: Registry) -> None:
    another = Registry(Tracking(registry.tracking.uri, registered_model="another"), registry.reader)
    assert another.model() is None and another.versions() == [] and another.champion() is None


def test_the_tables_say_what_the_client_says(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path / 'a workspace' / 'mlflow.db'}")
    runs = [log_evaluation(tracking, pair=f"p{n}", dvc_md5=f"evaluation-{n}").run_id for n in range(4)]
    client = mlflow_client(tracking)
    client.set_registered_model_tag(tracking.registered_model, "plumbline.promotion.1", "{}")
    for alias, version in (("b", "1"), ("a", "1"), ("c", "4")):
        client.set_registered_model_alias(tracking.registered_model, alias, version)
    client.delete_model_version(tracking.registered_model, "2")
    client.delete_run(runs[2])
    client.log_metric(runs[0], "kl_mean", 0.5)  # a later value

    tables, through_client = reader(tracking), ClientReader(tracking)
    assert isinstance(tables, SqliteReader)  # the installed MLflow has the tables that we know
    name = tracking.registered_model
    assert tables.model(name) == through_client.model(name)
    versions = [sorted(each.versions(name), key=lambda version: version.version) for each in (tables, through_client)]
    assert versions[0] == versions[1] and len(versions[0]) == 3
    for run_id in [*runs, "0" * 32]:
        assert tables.run(run_id) == through_client.run(run_id)


@pytest.mark.parametrize("change", ["UPDATE alembic_version SET version_num = 'new'", "DROP TABLE alembic_version"])
def test_unknown_tables_are_left_to_mlflow(change: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        database.execute("INSERT INTO alembic_version VALUES ('dc11669786a5')")
    assert isinstance(reader(Tracking(f"sqlite:///{path}")), SqliteReader)
    with pytest.raises(TrackingError, match="cannot be read"):
        reader(Tracking(f"sqlite:///{path}")).model("plumbline")
    with sqlite3.connect(path) as database:
        database.execute(change)
    assert isinstance(reader(Tracking(f"sqlite:///{path}")), ClientReader)
    assert isinstance(reader(Tracking("http://tracking:5000")), ClientReader)
