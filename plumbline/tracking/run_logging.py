"""What the evaluations and the promotion leave in MLflow, gathered from the artifacts and from dvc.lock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from plumbline.artifact import read_json
from plumbline.evaluation.summary import bucket_name, layer_error_figures
from plumbline.graph.timings import seconds_before
from plumbline.params import load_params
from plumbline.raw_corpus.document import OUT_OF_DOMAIN
from plumbline.tracking.address import tracking_uri
from plumbline.versioning.lock import read_lock, stage_name, upstream
from plumbline.versioning.recording import Step

if TYPE_CHECKING:
    from plumbline.tracking.client import Tracking
    from plumbline.tracking.promotion import Registry


def tracking(step: Step) -> Tracking:
    """MLflow as params.yaml has it."""
    return _tracking(step.root)


def _tracking(root: Path) -> Tracking:
    from plumbline.tracking.client import Tracking

    params = load_params(root).tracking
    return Tracking(tracking_uri(root), params.experiment, params.registered_model)


def record_in_mlflow(step: Step, pair: str, run_id: str) -> dict[str, Any]:
    """Log an evaluation as an MLflow run, with the calibration set as its dataset, and register the model.

    Returns:
        Metadata: the MLflow run and the registered version.
    """
    calibration, scheme = load_params(step.root).pairs()[pair]
    model = step.input("quantized_model", pair)
    chain = read_json(model / "calibration.json")
    metrics = read_json(step.out / "metrics.json")
    lock = read_lock(step.root)
    set_entry = lock[stage_name("calibration_set", calibration)]
    model_entry = lock[stage_name("quantized_model", pair)]
    choice = chain["calibration_set"]["choice"]
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    for domain, values in metrics["by_domain"].items():
        numbers |= {f"{name}/{domain}": value for name, value in values.items()}
    for bucket in metrics["by_length"]:
        of_bucket = {name: value for name, value in bucket.items() if name not in ("shortest", "longest")}
        numbers |= {f"{name}/length_{bucket_name(bucket)}": value for name, value in of_bucket.items()}
    for part in (OUT_OF_DOMAIN, "flips"):
        of_part = metrics.get(part, {}).items()
        numbers |= {f"{part}/{name}": value for name, value in of_part if isinstance(value, int | float)}
    numbers |= {f"layer_error/{name}": value for name, value in metrics["layer_errors"].items()}
    figures = layer_error_figures(metrics["layer_errors"])
    numbers |= {name: value for name, value in figures.items() if isinstance(value, float)}
    chosen = step.root / "data" / "calibration_set" / calibration
    manifest = read_json(chosen / "manifest.json")
    numbers |= _representativeness(read_json(chosen / "representativeness.json"))
    seconds = {**seconds_before(calibration, pair), "evaluation": step.seconds}
    numbers |= {f"seconds/{name}": value for name, value in seconds.items()}
    mlflow_run, version = tracking(step).record_evaluation(
        pair=pair,
        calibration=calibration,
        scheme=scheme,
        dvc_md5=step.md5,
        model_md5=step.inputs[f"data/quantized_model/{pair}"],
        calibration_md5=set_entry.md5,
        choice=choice,
        scheme_params=model_entry.params[f"schemes.{scheme}"],
        metrics=numbers,
        hashes={
            "calibration_set": chain["calibration_set"]["digest"],
            "statistics": chain["statistics"]["digest"],
            "base_model": chain["base_model"]["digest"],
            "tokenizer_fingerprint": chain["fingerprint"],
        },
        plots=sorted(step.out.glob("*.png")),
        dagster_run_id=run_id,
        code_version=step.code_version,
        model_path=f"data/quantized_model/{pair}",
        counts={name: manifest[name] for name in ("samples", "tokens")},
        rests_on=upstream(step.root, step.name),
    )
    return {"mlflow_run": mlflow_run, "registered_version": version}


def _representativeness(found: Mapping[str, Any]) -> dict[str, float]:
    """Percentile of each metric among random draws, per reference, and p over all metrics."""
    numbers: dict[str, float] = {}
    for reference, block in found["references"].items():
        of_metrics = block["metrics"].items()
        numbers |= {f"representativeness/{reference}/{name}_percentile": of["percentile"] for name, of in of_metrics}
        numbers[f"representativeness/{reference}/p_value"] = block["p_value"]
    return numbers


def record_study_in_mlflow(step: Step, name: str, run_id: str) -> dict[str, Any]:
    """Log a study as an MLflow run with a run within it per scheme, size and rule.

    Returns:
        Metadata: the MLflow run.
    """
    from plumbline.tracking.study import StudyRecord, record_study

    params = load_params(step.root)
    verdict = read_json(step.out / "verdict.json")
    record = StudyRecord(
        name=name,
        verdict=verdict,
        base_model=PurePath(params.model.name).name,
        dvc_md5=step.md5,
        samples_md5=step.inputs["data/tokenized_samples"],
        schemes={scheme: params.schemes[scheme].model_dump(mode="json") for scheme in verdict["schemes"]},
        artifacts=sorted(path for path in step.out.iterdir() if path.suffix in (".html", ".json", ".png")),
        tags={
            "dagster.run_id": run_id,
            "code_version": step.code_version,
            **{f"hash.{what}": digest for what, digest in verdict["digests"].items()},
        },
        seconds=step.seconds,
    )
    return {"mlflow_run": record_study(tracking(step), record)}


def record_report_in_mlflow(step: Step, run_id: str) -> dict[str, Any]:
    """Log the calibration report as an MLflow run with every comparison.

    Returns:
        Metadata: the MLflow run.
    """
    from plumbline.tracking.client import flatten
    from plumbline.tracking.report import record_report

    verdict = read_json(step.out / "verdict.json")
    tags = {
        "dagster.run_id": run_id,
        "code_version": step.code_version,
        **{f"hash.{what}": digest for what, digest in flatten(verdict["digests"]).items()},
    }
    artifacts = sorted(path for path in step.out.iterdir() if path.suffix in (".html", ".json", ".png"))
    return {"mlflow_run": record_report(tracking(step), verdict, step.md5, artifacts, tags)}


def registry(root: Path) -> Registry:
    """The registered models and their champion, in MLflow as params.yaml has it."""
    from plumbline.tracking.promotion import Registry

    return Registry(_tracking(root), root)


def promote_in_mlflow(step: Step) -> dict[str, Any]:
    """Move the alias `champion` to the candidate if the record says that it was promoted.

    Returns:
        Metadata: the champion, its version, who put it there, and the command that audits it.
    """
    from plumbline.tracking.promotion import MACHINE

    decided = read_json(step.out / "promotion.json")
    models = registry(step.root)
    if decided["decision"] == "promoted":
        models.promote(models.of_model(decided["model"]).version, MACHINE, decided["why"])
    return champion_metadata(models)


def champion_metadata(models: Registry) -> dict[str, Any]:
    """What Dagster shows of the champion."""
    champion = models.champion()
    if champion is None:
        return {"champion": "none"}
    last = models.history()[-1:]
    said = {"promoted_by": last[0].who, "promoted_because": last[0].why} if last else {}
    uri = f"models:/{models.name}@champion"
    return {
        "champion": champion.pair,
        "registry": f"{uri} (version {champion.version})",
        "audit": f"plumbline audit {uri}",
        **said,
    }
