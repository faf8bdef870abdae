"""An evaluation in MLflow: a run with the calibration set as its dataset, and a registered version of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tracking.client import Tracking
from plumbline.tracking.figures import evaluation_metrics, evaluation_tables, representativeness_metrics
from plumbline.tracking.model_version import CALIBRATION, EVALUATION, MODEL, RESTS_ON
from plumbline.tracking.run import STAGE, DatasetRecord, ModelRecord, RunRecord, Table, flatten, origin_tags, prefixed
from plumbline.tracking.run_logging import log_run
from plumbline.tracking.samples import samples_page
from plumbline.tracking.text import about, figures_text, origin_text, samples_text

if TYPE_CHECKING:
    from plumbline.versioning.recording import Step

COUNTS = ("samples", "tokens")
"""Of the set's manifest; metrics `count/*`."""


@dataclass(frozen=True)
class EvaluationRecord:
    """What is logged of an evaluation."""

    pair: str
    calibration: str
    scheme: str
    dvc_md5: str
    """DVC hash of the evaluation's folder; the next two are those of the model and of the calibration set."""
    model_md5: str
    calibration_md5: str
    choice: Mapping[str, Any]
    """Every parameter of the calibration choice, overrides included."""
    scheme_params: Mapping[str, Any]
    metrics: Mapping[str, float]
    hashes: Mapping[str, str]
    """Every other digest of the chain; tags `hash.*` of the run and of the version."""
    dagster_run_id: str
    code_version: str
    tables: Mapping[str, Table] = field(default_factory=dict)
    """What is too long for metrics, by file name."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of each step up to the evaluation, by the step's name; only those that are known."""
    plots: Sequence[Path] = ()
    pages: Sequence[Path] = ()
    """The page of the calibration samples, if it may be logged."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Rows and tokens in, out and lost by reason, nested by name."""
    base_model: Mapping[str, Any] = field(default_factory=dict)
    """Its name, revision and digest."""
    rests_on: Mapping[str, str] = field(default_factory=dict)
    """Path -> DVC hash of every upstream artifact of the model, for `plumbline gc`."""

    def as_run(self) -> RunRecord:
        """The run, identified by pair, evaluation and model."""
        path = f"data/quantized_model/{self.pair}"
        digests = {MODEL: self.model_md5, EVALUATION: self.dvc_md5, CALIBRATION: self.calibration_md5}
        digests |= {f"hash.{name}": value for name, value in sorted(self.hashes.items())}
        seconds = {f"seconds.{name}": f"{value:.2f}" for name, value in self.seconds.items()}
        chain = {RESTS_ON: json.dumps(dict(self.rests_on), sort_keys=True)} if self.rests_on else {}
        return RunRecord(
            name=self.pair,
            identity={STAGE: f"evaluation@{self.pair}", EVALUATION: self.dvc_md5, MODEL: self.model_md5},
            tags={
                **digests,
                "calibration": self.calibration,
                "scheme": self.scheme,
                "model_path": path,
                **seconds,
                **origin_tags(self.dagster_run_id, self.code_version, {}),
            },
            description=self._text(),
            params={
                **prefixed("choice", self.choice),
                **prefixed("scheme", self.scheme_params),
                **prefixed("base_model", self.base_model),
            },
            metrics={**self.metrics, **{f"count/{name}": n for name, n in flatten(self.counts, "/").items()}},
            dataset=DatasetRecord(
                self.calibration,
                self.calibration_md5,
                f"data/calibration_set/{self.calibration}",
                "calibration",
                self.choice.get("n"),
            ),
            artifacts=self.plots,
            linked=self.pages,
            tables=self.tables,
            seconds=self.seconds.get("evaluation"),
            model=ModelRecord(self.pair, path, digests, chain, self._what()),
        )

    def _what(self) -> str:
        sentences = (about(self.base_model, self.scheme, self.calibration), figures_text(self.metrics))
        return "\n\n".join(text for text in sentences if text)

    def _text(self) -> str:
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        tables = ", ".join(f"`{name}`" for name in self.tables)
        sentences = (
            self._what(),
            samples_text(self.calibration, in_artifacts=bool(self.pages)),
            f"Tables in the tab Artifacts: {tables}." if tables else "",
            f"Seconds: {seconds}." if seconds else "",
            origin_text(self.dagster_run_id),
            f"`plumbline audit data/quantized_model/{self.pair}` traces the model to its documents.",
        )
        return "\n\n".join(text for text in sentences if text)


def log_evaluation(step: Step, pair: str, dagster_run_id: str, seconds: Mapping[str, float]) -> dict[str, str]:
    """Log an evaluation and register the model.

    Args:
        seconds: duration of each step upstream of the evaluation.

    Returns:
        Metadata: the page of the run, and the registered version.
    """
    record = gather_evaluation(step, pair, dagster_run_id, seconds)
    logged = log_run(Tracking.of(step.root), record.as_run())
    return {"mlflow_run": logged.url, "registered_version": logged.version}


def gather_evaluation(step: Step, pair: str, dagster_run_id: str, seconds: Mapping[str, float]) -> EvaluationRecord:
    """Read the record of an evaluation from the artifacts and dvc.lock."""
    from plumbline.artifact import read_json
    from plumbline.params import load_params
    from plumbline.versioning.lock import read_lock, stage_name, upstream

    calibration, scheme = load_params(step.root).pairs()[pair]
    chain = read_json(step.input("quantized_model", pair) / "calibration.json")
    lock = read_lock(step.root)
    set_entry = lock[stage_name("calibration_set", calibration)]
    model_entry = lock[stage_name("quantized_model", pair)]
    calibration_set = step.root / "data" / "calibration_set" / calibration
    manifest = read_json(calibration_set / "manifest.json")
    content = read_json(step.out / "metrics.json")
    represents = read_json(calibration_set / "representativeness.json")
    own = {"evaluation": step.seconds} if step.seconds else {}  # unknown if it is logged long after it was computed
    return EvaluationRecord(
        pair=pair,
        calibration=calibration,
        scheme=scheme,
        dvc_md5=step.md5,
        model_md5=step.inputs[f"data/quantized_model/{pair}"],
        calibration_md5=set_entry.md5,
        choice=chain["calibration_set"]["choice"],
        scheme_params=model_entry.params[f"schemes.{scheme}"],
        metrics={**evaluation_metrics(content), **representativeness_metrics(represents)},
        hashes={
            "calibration_set": chain["calibration_set"]["digest"],
            "statistics": chain["statistics"]["digest"],
            "base_model": chain["base_model"]["digest"],
            "tokenizer_fingerprint": chain["fingerprint"],
        },
        dagster_run_id=dagster_run_id,
        code_version=step.code_version,
        tables=evaluation_tables(content, represents),
        seconds={**seconds, **own},
        plots=sorted(step.out.glob("*.png")),
        pages=samples_page(step.root, calibration, manifest["digest"], Tracking.of(step.root).uri),
        counts={name: manifest[name] for name in COUNTS},
        base_model=chain["base_model"],
        rests_on=upstream(step.root, {step.out.relative_to(step.root).as_posix(): step.md5}, step.inputs),
    )
