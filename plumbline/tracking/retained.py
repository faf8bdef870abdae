"""The registered versions in every store that a workspace knows, for `plumbline gc`. Nothing is created."""

from __future__ import annotations

import os
from pathlib import Path

from plumbline.tracking.address import DATABASE, tracking_section
from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import EVALUATION, MODEL, RESTS_ON, ModelVersion
from plumbline.tracking.readiness import server_problem
from plumbline.tracking.store import TrackingError, has_tables, mlflow_error, not_sqlite, sqlite_path

PAGE = 1000
OURS = (RESTS_ON, MODEL, EVALUATION)
"""A version with one of these tags was registered by Plumbline, under whatever name."""


def known_stores(root: Path) -> list[str]:
    """The URIs of `tracking.uri`, of MLFLOW_TRACKING_URI and of the workspace's own database, as far as they exist.

    All are read, because the one that is configured now need not be the one in which the champion was registered.

    Raises:
        TrackingError: the section `tracking` of params.yaml is invalid.
    """
    own = f"sqlite:///{root.resolve() / DATABASE}"
    named = (tracking_section(root).uri, os.environ.get("MLFLOW_TRACKING_URI"), own)
    uris = dict.fromkeys(uri for uri in named if uri)
    return [uri for uri in uris if not uri.startswith("sqlite:") or sqlite_path(uri).is_file()]


def retained_versions(root: Path) -> list[ModelVersion]:
    """The versions that Plumbline registered in the known stores, under any name.

    Raises:
        ValueError: a store does not answer, or cannot be read by the installed MLflow: what it names is not known.
    """
    return [version for uri in known_stores(root) for version in _versions(Tracking(uri, read_only=True))]


def _versions(tracking: Tracking) -> list[ModelVersion]:
    if tracking.uri.startswith("http") and (problem := server_problem(tracking.uri)):
        raise TrackingError(f"{problem}. What it names is not known, so nothing was deleted")
    if (database := tracking.database) is not None:
        if problem := not_sqlite(database):
            raise TrackingError(problem)
        if not has_tables(database):
            return []
    versions: list[ModelVersion] = []
    token = None
    try:
        with tracking.client() as client:
            while True:
                page = client.search_model_versions(max_results=PAGE, page_token=token)
                versions += [ModelVersion.of(entity, ()) for entity in page]
                token = page.token
                if not token:
                    break
    except mlflow_error() as error:
        raise TrackingError(f"MLflow's store cannot be read ({str(error)[:300]})") from error
    return [version for version in versions if any(tag in version.tags for tag in OURS)]
