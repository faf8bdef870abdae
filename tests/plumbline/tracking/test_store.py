"""Opening a store that is not as MLflow made it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest

from plumbline.tracking.store import TrackingError, mlflow_error, opened


def test_a_database_of_another_schema_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    opened(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE alembic_version")
    moved = path.rename(tmp_path / "moved.db")  # MLflow, too, remembers what it has opened
    with pytest.raises(TrackingError, match=r"moved\.db is no database of this MLflow .*restore it"):
        opened(f"sqlite:///{moved}")


def test_an_error_of_the_database_is_raised_and_not_logged_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broken.db"
    client = opened(f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE runs")
        database.commit()
    logging.getLogger("mlflow.store.db.utils").addHandler(caplog.handler)
    try:
        with pytest.raises(mlflow_error(), match="no such table: runs"):
            client.create_run("0")
    finally:
        logging.getLogger("mlflow.store.db.utils").removeHandler(caplog.handler)
    assert not caplog.records
