"""Where a SQLite store keeps artifacts: in `mlruns` beside it, also after the workspace was copied or moved.

MLflow records absolute locations. Without a correction, a run in a copied workspace would write its plots into the
original.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from plumbline.tracking.store import TrackingError, not_sqlite

ARTIFACTS = "mlruns"
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's tables hold locations."""


def artifact_location(database: Path) -> str:
    """The location of the artifacts of a store, as a URI."""
    return (database.parent / ARTIFACTS).as_uri()


def local_folder(location: str) -> Path | None:
    """The folder of an artifact location on this machine; None: it is elsewhere."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    return Path(url2pathname(parts.path) if parts.scheme else location).absolute()


def follow(database: Path) -> list[str]:
    """Replace the locations of the place that a store was copied or moved from; returns them.

    A location is replaced if it was the default of a store that is still there (a copy) or if it is gone (a move).
    Other locations are somebody's choice.

    Raises:
        TrackingError: the database cannot be written.
    """
    if not database.is_file():
        return []
    if problem := not_sqlite(database):
        raise TrackingError(problem)
    here = artifact_location(database)
    try:
        with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as store:
            known = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in known:
                return []
            locations = store.execute("SELECT DISTINCT artifact_location FROM experiments ORDER BY 1").fetchall()
            left = [text for (text,) in locations if text and text != here and _is_left(text, database.name)]
            if left:
                store.execute("BEGIN IMMEDIATE")
                for table, column in COLUMNS:
                    columns = {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
                    for old in left if column in columns else ():
                        store.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        )
                store.execute("COMMIT")
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database}: the workspace was copied or moved, and the artifact locations in the database cannot be "
            f"corrected ({error}); make the file writable, and stop whatever holds it"
        ) from error
    return left


def _is_left(location: str, name: str) -> bool:
    """Whether a location is the default of a store that was elsewhere."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return False
    folder = Path(url2pathname(parts.path) if parts.scheme else location)
    if folder.name != ARTIFACTS or not folder.is_absolute():
        return False
    return (folder.parent / name).is_file() or not folder.exists()
