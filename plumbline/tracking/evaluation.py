"""An evaluation in MLflow: a run with the calibration set as its dataset, and a registered version of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import CALIBRATION, EVALUATION, MODEL, RESTS_ON
from plumbline.tracking.run import STAGE, DatasetRecord, ModelRecord, RunRecord, flatten, origin_tags, prefixed
from plumbline.tracking.run_logging import log_run

if TYPE_CHECKING:
    from plumbline.versioning.recording import Step


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
    plots: Sequence[Path] = ()
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
        chain = {RESTS_ON: json.dumps(dict(self.rests_on), sort_keys=True)} if self.rests_on else {}
        return RunRecord(
            name=self.pair,
            identity={STAGE: f"evaluation@{self.pair}", EVALUATION: self.dvc_md5, MODEL: self.model_md5},
            tags={
                **digests,
                "calibration": self.calibration,
                "scheme": self.scheme,
                "model_path": path,
                **origin_tags(self.dagster_run_id, self.code_version, {}),
            },
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
            model=ModelRecord(self.pair, path, digests, chain),
        )


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
    metrics = evaluation_metrics(read_json(step.out / "metrics.json"))
    metrics |= representativeness_metrics(read_json(calibration_set / "representativeness.json"))
    own = {"evaluation": step.seconds} if step.seconds else {}  # unknown if it is logged long after it was computed
    metrics |= {f"seconds/{name}": value for name, value in {**seconds, **own}.items()}
    return EvaluationRecord(
        pair=pair,
        calibration=calibration,
        scheme=scheme,
        dvc_md5=step.md5,
        model_md5=step.inputs[f"data/quantized_model/{pair}"],
        calibration_md5=set_entry.md5,
        choice=chain["calibration_set"]["choice"],
        scheme_params=model_entry.params[f"schemes.{scheme}"],
        metrics=metrics,
        hashes={
            "calibration_set": chain["calibration_set"]["digest"],
            "statistics": chain["statistics"]["digest"],
            "base_model": chain["base_model"]["digest"],
            "tokenizer_fingerprint": chain["fingerprint"],
        },
        dagster_run_id=dagster_run_id,
        code_version=step.code_version,
        plots=sorted(step.out.glob("*.png")),
        counts={name: manifest[name] for name in ("samples", "tokens")},
        base_model=chain["base_model"],
        rests_on=upstream(step.root, {step.out.relative_to(step.root).as_posix(): step.md5}, step.inputs),
    )


def evaluation_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json by name: overall, per domain, per length bucket, per part, per layer."""
    from plumbline.evaluation.summary import bucket_name, layer_error_figures
    from plumbline.raw_corpus.document import OUT_OF_DOMAIN

    metrics = {name: value for name, value in content.items() if isinstance(value, int | float)}
    for domain, values in content["by_domain"].items():
        metrics |= {f"{name}/{domain}": value for name, value in values.items()}
    for bucket in content["by_length"]:
        values = {name: value for name, value in bucket.items() if name not in ("shortest", "longest")}
        metrics |= {f"{name}/length_{bucket_name(bucket)}": value for name, value in values.items()}
    for part in (OUT_OF_DOMAIN, "flips"):
        numbers = content.get(part, {}).items()
        metrics |= {f"{part}/{name}": value for name, value in numbers if isinstance(value, int | float)}
    metrics |= {f"layer_error/{name}": value for name, value in content["layer_errors"].items()}
    figures = layer_error_figures(content["layer_errors"])
    return metrics | {name: value for name, value in figures.items() if isinstance(value, float)}


def representativeness_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """Percentile of each metric among random draws, per reference, and the p-value over all metrics."""
    metrics: dict[str, float] = {}
    for reference, block in content["references"].items():
        prefix = f"representativeness/{reference}"
        metrics |= {f"{prefix}/{name}_percentile": row["percentile"] for name, row in block["metrics"].items()}
        metrics[f"{prefix}/p_value"] = block["p_value"]
    return metrics
