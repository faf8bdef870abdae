"""The calibration report in MLflow: one run with every comparison and its interval, the page and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tracking.client import Tracking
from plumbline.tracking.run import (
    OUTPUT,
    STAGE,
    RunRecord,
    Table,
    origin_tags,
    page_files,
    prefixed,
    verdict_description,
)
from plumbline.tracking.run_logging import log_run

if TYPE_CHECKING:
    from plumbline.versioning.recording import Step

NAME = "calibration report"
ENDS = ("low", "high")


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
    seconds: float | None = None

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
            tables=_tables(self.verdict),
            seconds=self.seconds,
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
    record = ReportRecord(verdict, step.md5, page_files(step.out), tags, step.seconds)
    return {"mlflow_run": log_run(Tracking.of(step.root), record.as_run()).url}


def _metrics(verdict: Mapping[str, Any]) -> dict[str, float]:
    """How many comparisons came out how, and over how much text."""
    verdicts = [c["verdict"] for c in verdict["comparisons"]]
    metrics: dict[str, float] = {f"comparisons/{word}": verdicts.count(word) for word in dict.fromkeys(verdicts)}
    return metrics | {"documents": verdict["documents"], "tokens": verdict["tokens"]}


def _tables(verdict: Mapping[str, Any]) -> dict[str, Table]:
    """Mean KL per model, relative difference per comparison, and flips, all with interval or adjusted p-value."""
    models = [
        [pair, estimate["kl_mean"], *(estimate[key] for key in ENDS)] for pair, estimate in verdict["estimates"].items()
    ]
    comparisons = []
    for c in verdict["comparisons"]:
        relative = c.get("relative", {})
        figures = [relative.get(key) for key in ("difference", *ENDS)]
        comparisons.append([c["scheme"], c["choice"], c["baseline"], c["verdict"], *figures, c.get("p_adjusted")])
    answers = [[f"{row['choice']}-{row['scheme']}", row["flips"], row["p_adjusted"]] for row in verdict["answers"]]
    tables = {
        "models.json": Table(("model", "kl_mean", *ENDS), models),
        "comparisons.json": Table(
            ("scheme", "choice", "baseline", "verdict", "difference", *ENDS, "p_adjusted"), comparisons
        ),
        "answers.json": Table(("model", "flips", "p_adjusted"), answers),
    }
    return {name: table for name, table in tables.items() if table.rows}
