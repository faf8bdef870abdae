"""The calibration report in MLflow: one run with every comparison and its interval, the page and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.tracking.client import (
    STAGE,
    Tracking,
    log_batches,
    logged_run,
    metric_names,
    prefixed,
    recorder,
    search,
)
from plumbline.tracking.study import OUTPUT, note

NAME = "calibration report"
ENDS = (("low", "_low"), ("high", "_high"))


def record_report(
    tracking: Tracking, verdict: Mapping[str, Any], dvc_md5: str, artifacts: Sequence[Path], tags: Mapping[str, str]
) -> str:
    """Log the report beside the evaluations that it compares; done once per output.

    Args:
        verdict: the content of verdict.json.
        dvc_md5: of the report's folder.
        artifacts: the page, its tables and pictures.

    Returns:
        The id of the run.

    Raises:
        TrackingError: the server does not answer, or the experiment was deleted.
    """
    with tracking.client() as client:
        experiment = tracking.experiment_id(client)
        identity = {STAGE: "calibration_report", OUTPUT: dvc_md5}
        for run in search(client, experiment, identity):
            if run.info.status == "FINISHED":
                return str(run.info.run_id)
        tags = {**recorder(), **identity, **tags, **note(verdict)}
        with logged_run(client, experiment, NAME, tags) as run_id:
            names = ("baseline", "confidence", "resamples", "seed")
            params = prefixed("report", {name: verdict[name] for name in names})
            log_batches(client, run_id, params, metric_names(_metrics(verdict)))
            for path in artifacts:
                client.log_artifact(run_id, str(path), "plots" if path.suffix == ".png" else None)
    return run_id


def _metrics(verdict: Mapping[str, Any]) -> dict[str, float]:
    """Mean KL per model; per comparison the relative difference, both with their ends, and the adjusted p-value."""
    called = [c["verdict"] for c in verdict["comparisons"]]
    found: dict[str, Any] = {f"comparisons/{word}": called.count(word) for word in dict.fromkeys(called)}
    for pair, estimate in verdict["estimates"].items():
        found |= {f"kl_mean/{pair}{end}": estimate[key] for key, end in (("kl_mean", ""), *ENDS)}
    for c in verdict["comparisons"]:
        pair = f"{c['choice']}-{c['scheme']}"
        relative = c.get("relative", {})
        found |= {f"difference/{pair}{end}": relative.get(key) for key, end in (("difference", ""), *ENDS)}
        found[f"p_adjusted/{pair}"] = c.get("p_adjusted")
    for row in verdict["answers"]:
        pair = f"{row['choice']}-{row['scheme']}"
        found |= {f"flips/{pair}": row["flips"], f"flips_p_adjusted/{pair}": row["p_adjusted"]}
    found |= {"documents": verdict["documents"], "tokens": verdict["tokens"]}
    return {name: value for name, value in found.items() if value is not None}
