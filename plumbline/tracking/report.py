"""The calibration report in MLflow: one run with every comparison and its interval, the page and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tracking.client import Tracking
from plumbline.tracking.run import OUTPUT, STAGE, RunRecord, origin_tags, page_files, prefixed, verdict_description
from plumbline.tracking.run_logging import log_run

if TYPE_CHECKING:
    from plumbline.versioning.recording import Step

NAME = "calibration report"
ENDS = (("low", "_low"), ("high", "_high"))


@dataclass(frozen=True)
class ReportRecord:
    """What is logged of a calibration report."""

    verdict: Mapping[str, Any]
    """The content of verdict.json."""
    dvc_md5: str
    """DVC hash of the report's folder."""
    artifacts: Sequence[Path]
    """The page, its tables and plots."""
    tags: Mapping[str, str]
    """Code version, Dagster run, digests."""

    def as_run(self) -> RunRecord:
        """The run, identified by stage and report."""
        names = ("baseline", "confidence", "resamples", "seed")
        return RunRecord(
            name=NAME,
            identity={STAGE: "calibration_report", OUTPUT: self.dvc_md5},
            tags=self.tags,
            params={
                **prefixed("report", {name: self.verdict[name] for name in names}),
                **prefixed("base_model", self.verdict.get("base_model") or {}),
            },
            metrics=_metrics(self.verdict),
            description=verdict_description(self.verdict),
            artifacts=self.artifacts,
        )


def log_report(step: Step, dagster_run_id: str) -> dict[str, str]:
    """Log the calibration report.

    Returns:
        Metadata: the page of the run.
    """
    from plumbline.artifact import read_json

    verdict = read_json(step.out / "verdict.json")
    tags = origin_tags(dagster_run_id, step.code_version, verdict["digests"])
    record = ReportRecord(verdict, step.md5, page_files(step.out), tags)
    return {"mlflow_run": log_run(Tracking.of(step.root), record.as_run()).url}


def _metrics(verdict: Mapping[str, Any]) -> dict[str, float]:
    """Mean KL per model and relative difference per comparison, with interval ends, and the adjusted p-value."""
    verdicts = [c["verdict"] for c in verdict["comparisons"]]
    metrics: dict[str, Any] = {f"comparisons/{word}": verdicts.count(word) for word in dict.fromkeys(verdicts)}
    for pair, estimate in verdict["estimates"].items():
        metrics |= {f"kl_mean/{pair}{end}": estimate[key] for key, end in (("kl_mean", ""), *ENDS)}
    for c in verdict["comparisons"]:
        pair = f"{c['choice']}-{c['scheme']}"
        relative = c.get("relative", {})
        metrics |= {f"difference/{pair}{end}": relative.get(key) for key, end in (("difference", ""), *ENDS)}
        metrics[f"p_adjusted/{pair}"] = c.get("p_adjusted")
    for row in verdict["answers"]:
        pair = f"{row['choice']}-{row['scheme']}"
        metrics |= {f"flips/{pair}": row["flips"], f"flips_p_adjusted/{pair}": row["p_adjusted"]}
    metrics |= {"documents": verdict["documents"], "tokens": verdict["tokens"]}
    return {name: value for name, value in metrics.items() if value is not None}
