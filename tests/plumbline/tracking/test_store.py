"""Opening a store that is not as MLflow made it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from plumbline.tracking.store import TrackingError, opened


def test_a_database_of_another_schema_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    opened(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE alembic_version")
    moved = path.rename(tmp_path / "moved.db")  # MLflow, too, remembers what it has opened
    with pytest.raises(TrackingError, match=r"moved\.db is no database of this MLflow .*restore it"):
        opened(f"sqlite:///{moved}")
