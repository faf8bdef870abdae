"""The address of MLflow's tracking store."""

from __future__ import annotations

import os
from pathlib import Path

from plumbline.params import load_params


def tracking_uri(root: Path) -> str:
    """`tracking.uri` of params.yaml, else MLFLOW_TRACKING_URI, else a SQLite file of the workspace."""
    return load_params(root).tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
