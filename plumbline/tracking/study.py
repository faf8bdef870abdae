"""A study in MLflow: an experiment per base model, a run per study, and within it one per scheme × size × rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_json
from plumbline.tracking.client import (
    SOURCE,
    STAGE,
    Tracking,
    log_batches,
    log_dataset,
    logged_run,
    metric_names,
    prefixed,
    recorder,
    search,
)

OUTPUT = "dvc.md5"
"""Tag: DVC hash of the study's folder. With the stage's name it identifies a record."""


@dataclass(frozen=True)
class StudyRecord:
    """What is recorded of a study."""

    name: str
    verdict: Mapping[str, Any]
    """The content of verdict.json."""
    base_model: str
    """As people call it; names the experiment."""
    dvc_md5: str
    samples_md5: str
    """Of tokenized_samples, which the sets were drawn from."""
    schemes: Mapping[str, Mapping[str, Any]]
    artifacts: Sequence[Path]
    """The page, verdict.json and the plots."""
    tags: Mapping[str, str]
    """Code version, Dagster's run, digests."""
    seconds: float | None = None
    """Of this run, which need not have measured everything: a study goes on where it was."""


def record_study(tracking: Tracking, study: StudyRecord) -> str:
    """Log a study with all its arms; done once per output.

    Returns:
        The id of the parent run.

    Raises:
        TrackingError: the server does not answer, or the experiment was deleted.
    """
    tracking = replace(tracking, experiment=f"{tracking.experiment} study {study.base_model}")
    with tracking.client() as client:
        experiment = tracking.experiment_id(client)
        identity = {STAGE: f"study@{study.name}", OUTPUT: study.dvc_md5}
        for run in search(client, experiment, identity):
            if run.info.status == "FINISHED":
                return str(run.info.run_id)
        tags = {**identity, **study.tags, **recorder(), **note(study.verdict)}
        with logged_run(client, experiment, study.name, tags) as parent:
            log_dataset(
                client, parent, _dataset("tokenized_samples", study.samples_md5, "data/tokenized_samples", None)
            )
            log_batches(client, parent, prefixed("study", _asked(study.verdict)), metric_names(_of_study(study)))
            for path in study.artifacts:
                client.log_artifact(parent, str(path), "plots" if path.suffix == ".png" else None)
            for name, arm in _arms(study.verdict):
                child = {**SOURCE, "mlflow.parentRunId": parent, "verdict": arm["verdict"], "study": study.name}
                with logged_run(client, experiment, name, child) as run_id:
                    params = {key: str(arm[key]) for key in ("scheme", "n", "rule", "kind")}
                    params |= {**prefixed("rule", arm["options"]), **prefixed("scheme", study.schemes[arm["scheme"]])}
                    log_batches(client, run_id, params, metric_names(arm["metrics"]))
                    if arm["sets"]:
                        digest = sha256_json(arm["sets"])[:32]
                        label = f"{arm['rule']}-{arm['n']} × {len(arm['sets'])}"
                        where = f"data/study/{study.name}/verdict.json"
                        log_dataset(client, run_id, _dataset(label, digest, where, arm["n"]))
    return parent


def note(verdict: Mapping[str, Any]) -> dict[str, str]:
    """The tag that MLflow shows as a run's description: what was found, in sentences."""
    return {"mlflow.note.content": "\n\n".join([verdict["headline"], *verdict["sentences"]])[:4000]}


def _arms(verdict: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, what is logged) of every rule and control under every scheme and size.

    Names begin alike and have numbers of one width, so that sorting by name keeps neighbours together.
    """
    width = len(str(max(verdict["sizes"])))
    compared = {(c["scheme"], c["n"], c["rule"]): c for c in verdict["comparisons"]}
    domains = {(of["scheme"], of["n"], of["rule"]): of["domains"] for of in verdict["by_domain"]}
    found = []
    for arm in verdict["arms"]:
        c = compared.get((arm["scheme"], arm["n"], arm["rule"]))
        numbers = {key: arm[key] for key in ("kl_mean", "kl_sd", "top1_agreement", "calibration_tokens", "fallbacks")}
        one = {
            **{key: arm[key] for key in ("scheme", "n", "rule")},
            "kind": "rule" if c else "baseline",
            "verdict": c["verdict"] if c else "baseline",
            "options": verdict["rules"][arm["rule"]],
            "metrics": {**numbers, **_tested(c), **_by_domain(domains[arm["scheme"], arm["n"], arm["rule"]])},
            "sets": [draw["set"] for draw in arm["draws"]],
        }
        found.append(one)
    for c in verdict["controls"]:
        about = {key: c[key] for key in ("scheme", "n", "rule", "verdict")}
        metrics = {"kl_mean": c["kl_mean"], **_tested(c)}
        found.append({**about, "kind": "control", "options": {}, "metrics": metrics, "sets": []})
    return [(f"{one['scheme']} n={one['n']:0{width}d} {one['rule']}", one) for one in found]


def _by_domain(domains: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    named = {f"{figure}/{name}": value for name, of in domains.items() for figure, value in of.items()}
    return {name: value for name, value in named.items() if value is not None}


def _tested(c: Mapping[str, Any] | None) -> dict[str, float]:
    if c is None:
        return {}
    names = ("difference", "low", "high", "p_value", "p_adjusted", "smallest_difference", "detectable", "draws_needed")
    labels = {"low": "difference_low", "high": "difference_high"}
    numbers = {labels.get(name, name): c[name] for name in names if c[name] is not None}
    if c["spread_ratio"] is not None:
        ends = (("estimate", ""), ("low", "_low"), ("high", "_high"))
        numbers |= {f"spread_ratio{end}": c["spread_ratio"][key] for key, end in ends}
    return numbers


def _of_study(study: StudyRecord) -> dict[str, float]:
    verdict = study.verdict
    called = [c["verdict"] for c in verdict["comparisons"]]
    words = ("better", "worse", "no difference detected", "identical")
    numbers: dict[str, float] = {f"comparisons/{word}": called.count(word) for word in words}
    numbers |= {f"enough/{curve['scheme']}": curve["enough"] for curve in verdict["size_curve"]}
    for answer in verdict["representativeness"]["by_scheme"]:
        for entry in answer["metrics"]:
            name = f"rank_correlation/{answer['scheme']}/{entry['metric']}"
            numbers |= {name: entry["rho"], f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
    numbers |= {f"cost/{name}": count for name, count in verdict["cost"].items()}
    if study.seconds is not None:
        numbers["seconds"] = study.seconds
    return {**numbers, "documents": verdict["documents"], "tokens": verdict["tokens"]}


def _asked(verdict: Mapping[str, Any]) -> dict[str, Any]:
    names = ("baseline", "rules", "sizes", "schemes", "draws", "share", "seed", "confidence", "resamples")
    return {name: verdict[name] for name in names}


def _dataset(name: str, digest: str, path: str, rows: int | None) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"num_rows": rows}) if rows is not None else None
    source = json.dumps({"uri": path})
    return DatasetInput(
        Dataset(name, digest, "local", source, profile=profile), [InputTag("mlflow.data.context", "study")]
    )
