"""Evaluations to log in MLflow, and MLflow's own client to look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plumbline.tracking.client import Tracking
from plumbline.tracking.evaluation import EvaluationRecord
from plumbline.tracking.run_logging import LoggedRun, log_run

MD5 = {
    name: f"{i:032x}.dir" for i, name in enumerate(("evaluation", "model", "calibration", "other", "unregistered"), 1)
}


def evaluation(**changes: Any) -> EvaluationRecord:
    """A plausible evaluation."""
    fields: dict[str, Any] = {
        "pair": "random-64-w4a16-gptq",
        "calibration": "random-64",
        "scheme": "w4a16-gptq",
        "dvc_md5": MD5["evaluation"],
        "model_md5": MD5["model"],
        "calibration_md5": MD5["calibration"],
        "choice": {"name": "random-64", "strategy": "random", "n": 64, "domains": None, "options": {"seed": 0}},
        "scheme_params": {"method": "gptq", "weight_bits": 4},
        "metrics": {"kl_mean": 0.125, "kl_mean/prose": 0.25, "kl_mean/c++": 0.5},
        "hashes": {"fingerprint": "f" * 64, "base_model": "b" * 64},
        "dagster_run_id": "run-1",
        "code_version": "0123456789ab",
        "counts": {"samples": 64, "lost": {"too_short": {"tokens": 7}}},
    }
    return EvaluationRecord(**{**fields, **changes})


def log_evaluation(tracking: Tracking, **changes: Any) -> LoggedRun:
    """Log a plausible evaluation and register its model."""
    return log_run(tracking, evaluation(**changes).as_run())


def mlflow_client(tracking: Tracking) -> Any:
    """MLflow's client of the same store."""
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri, tracking.uri)


def table(client: Any, run_id: str, name: str) -> list[dict[str, Any]]:
    """The rows of a table that a run logged; MLflow shows it as one."""
    shown = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert {"path": name, "type": "table"} in shown
    content = json.loads(Path(client.download_artifacts(run_id, name)).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
