"""One resolution of the tracking address, for those who write and for those who only read."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
import yaml

from plumbline.tracking.address import tracking_address
from plumbline.tracking.client import Tracking
from plumbline.tracking.registry import registered_versions
from plumbline.tracking.store import NoStore, TrackingError

SERVER = "http://tracking:5000"
OWN = "https://own"
PARAMS = Path(__file__).resolve().parents[3] / "params.yaml"


def write_params(root: Path, **changes: object) -> None:
    content = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    (root / "params.yaml").write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")


def tables(path: Path) -> None:
    """A database in which MLflow has made its tables, as far as one looks."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("section", "variable", "expected"),
    [
        ({"uri": OWN}, SERVER, OWN),
        ({"uri": OWN}, None, OWN),
        ({}, SERVER, SERVER),
        ({"uri": None}, SERVER, SERVER),
        ({}, None, "sqlite:///{root}/mlflow.db"),
        ({}, "", "sqlite:///{root}/mlflow.db"),
    ],
)
def test_params_then_the_variable_then_a_file_of_the_workspace(
    section: dict[str, str],
    variable: str | None,
    expected: str,
    read_only: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_params(tmp_path, tracking={**section, "experiment": "e", "registered_model": "m"})
    tables(tmp_path / "mlflow.db")
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    address = tracking_address(tmp_path, read_only=read_only)
    assert address.uri == expected.format(root=tmp_path)
    assert Tracking.of(tmp_path, read_only=read_only) == Tracking(str(address.uri), "e", "m")


@pytest.mark.parametrize(
    "content", [None, "", "corpus: [", "- 1", "model: {nonsense: 1}\ntracking: {registered_model: m}", b"\xff"]
)
def test_only_who_writes_needs_the_rest_of_params_yaml(content: str | bytes | None, tmp_path: Path) -> None:
    tables(tmp_path / "mlflow.db")
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert tracking_address(tmp_path, read_only=True).uri == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ValueError):
        tracking_address(tmp_path)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_section_that_is_wrong_is_an_error(read_only: bool, tmp_path: Path) -> None:
    write_params(tmp_path, tracking={"url": SERVER})
    with pytest.raises(ValueError, match=r"tracking[\s\S]*url"):
        tracking_address(tmp_path, read_only=read_only)


def test_who_reads_makes_no_store(tmp_path: Path) -> None:
    write_params(tmp_path)
    with pytest.raises(TrackingError, match="`plumbline run` makes it"):
        tracking_address(tmp_path, read_only=True)
    assert registered_versions(tmp_path) == []
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(NoStore, match=r"mlflow\.db is empty; `plumbline run` fills it"):
        tracking_address(tmp_path, read_only=True)
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(TrackingError, match="is not a SQLite database"):
        tracking_address(tmp_path, read_only=True)
    (tmp_path / "mlflow.db").unlink()
    assert tracking_address(tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
