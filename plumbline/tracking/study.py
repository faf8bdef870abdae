"""A study in MLflow: an experiment per base model, a run per study, a child run per scheme × size × rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from plumbline.artifact import sha256_json
from plumbline.tracking.client import Tracking
from plumbline.tracking.run import (
    OUTPUT,
    STAGE,
    DatasetRecord,
    RunRecord,
    Table,
    origin_tags,
    page_files,
    prefixed,
    verdict_description,
)
from plumbline.tracking.run_logging import LoggedRun, log_run
from plumbline.tracking.view import STUDIES

if TYPE_CHECKING:
    from plumbline.versioning.recording import Step


@dataclass(frozen=True)
class StudyRecord:
    """What is logged of a study."""

    name: str
    verdict: Mapping[str, Any]
    """The content of verdict.json."""
    base_model: str
    """Its short name, which is part of the experiment's name."""
    dvc_md5: str
    samples_md5: str
    """DVC hash of tokenized_samples, from which the sets were drawn."""
    schemes: Mapping[str, Mapping[str, Any]]
    artifacts: Sequence[Path]
    """The page, verdict.json and the plots."""
    tags: Mapping[str, str]
    """Code version, Dagster run, digests."""
    seconds: float | None = None
    """Duration of this run, which may have measured only a part: an interrupted study is resumed."""

    def as_run(self) -> RunRecord:
        """The run, with a child per arm."""
        return RunRecord(
            name=self.name,
            identity={STAGE: f"study@{self.name}", OUTPUT: self.dvc_md5},
            tags=self.tags,
            params={
                **prefixed("study", _settings(self.verdict)),
                **prefixed("base_model", self.verdict.get("base_model") or {}),
            },
            metrics=_study_metrics(self),
            tables=_tables(self.verdict),
            seconds=self.seconds,
            view=STUDIES,
            description=verdict_description(self.verdict),
            dataset=DatasetRecord("tokenized_samples", self.samples_md5, "data/tokenized_samples", "study"),
            artifacts=self.artifacts,
            children=[self._child(name, arm) for name, arm in _arms(self.verdict)],
        )

    def _child(self, name: str, arm: Mapping[str, Any]) -> RunRecord:
        params = {key: str(arm[key]) for key in ("scheme", "n", "rule", "kind")}
        params |= {**prefixed("rule", arm["options"]), **prefixed("scheme", self.schemes[arm["scheme"]])}
        sets = arm["sets"]
        dataset = DatasetRecord(
            f"{arm['rule']}-{arm['n']} × {len(sets)}",
            sha256_json(sets)[:32],
            f"data/study/{self.name}/verdict.json",
            "study",
            arm["n"],
        )
        tags = {"verdict": arm["verdict"], "study": self.name}
        return RunRecord(name, tags=tags, params=params, metrics=arm["metrics"], dataset=dataset if sets else None)


def log_study(step: Step, name: str, dagster_run_id: str) -> dict[str, str]:
    """Log a study as a run with a child run per scheme, size and rule.

    Returns:
        Metadata: the page of the run.
    """
    from plumbline.artifact import read_json
    from plumbline.params import load_params

    params = load_params(step.root)
    verdict = read_json(step.out / "verdict.json")
    record = StudyRecord(
        name=name,
        verdict=verdict,
        base_model=PurePath(params.model.name).name,
        dvc_md5=step.md5,
        samples_md5=step.inputs["data/tokenized_samples"],
        schemes={scheme: params.schemes[scheme].model_dump(mode="json") for scheme in verdict["schemes"]},
        artifacts=page_files(step.out),
        tags=origin_tags(dagster_run_id, step.code_version, verdict["digests"]),
        seconds=step.seconds,
    )
    return {"mlflow_run": log_study_record(Tracking.of(step.root), record).url}


def log_study_record(tracking: Tracking, study: StudyRecord) -> LoggedRun:
    """Log a study in the experiment of its base model."""
    return log_run(replace(tracking, experiment=f"{tracking.experiment} study {study.base_model}"), study.as_run())


def _arms(verdict: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, what is logged) of every rule and control under every scheme and size.

    Sizes in the names are zero-padded, so that sorting by name also sorts by size.
    """
    width = len(str(max(verdict["sizes"])))
    compared = {(c["scheme"], c["n"], c["rule"]): c for c in verdict["comparisons"]}
    domains = {(row["scheme"], row["n"], row["rule"]): row["domains"] for row in verdict["by_domain"]}
    rows = []
    for arm in verdict["arms"]:
        c = compared.get((arm["scheme"], arm["n"], arm["rule"]))
        numbers = {key: arm[key] for key in ("kl_mean", "kl_sd", "top1_agreement", "calibration_tokens", "fallbacks")}
        row = {
            **{key: arm[key] for key in ("scheme", "n", "rule")},
            "kind": "rule" if c else "baseline",
            "verdict": c["verdict"] if c else "baseline",
            "options": verdict["rules"][arm["rule"]],
            "metrics": {
                **numbers,
                **_test_metrics(c),
                **_domain_metrics(domains[arm["scheme"], arm["n"], arm["rule"]]),
            },
            "sets": [draw["set"] for draw in arm["draws"]],
        }
        rows.append(row)
    for c in verdict["controls"]:
        fields = {key: c[key] for key in ("scheme", "n", "rule", "verdict")}
        metrics = {"kl_mean": c["kl_mean"], **_test_metrics(c)}
        rows.append({**fields, "kind": "control", "options": {}, "metrics": metrics, "sets": []})
    return [(f"{row['scheme']} n={row['n']:0{width}d} {row['rule']}", row) for row in rows]


def _domain_metrics(domains: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    named = {f"{figure}/{name}": value for name, row in domains.items() for figure, value in row.items()}
    return {name: value for name, value in named.items() if value is not None}


def _test_metrics(c: Mapping[str, Any] | None) -> dict[str, float]:
    if c is None:
        return {}
    names = ("difference", "low", "high", "p_value", "p_adjusted", "smallest_difference", "detectable", "draws_needed")
    labels = {"low": "difference_low", "high": "difference_high"}
    numbers = {labels.get(name, name): c[name] for name in names if c[name] is not None}
    if c["spread_ratio"] is not None:
        ends = (("estimate", ""), ("low", "_low"), ("high", "_high"))
        numbers |= {f"spread_ratio{end}": c["spread_ratio"][key] for key, end in ends}
    return numbers


def _study_metrics(study: StudyRecord) -> dict[str, float]:
    verdict = study.verdict
    verdicts = [c["verdict"] for c in verdict["comparisons"]]
    words = ("better", "worse", "no difference detected", "identical")
    numbers: dict[str, float] = {f"comparisons/{word}": verdicts.count(word) for word in words}
    numbers |= {f"enough/{curve['scheme']}": curve["enough"] for curve in verdict["size_curve"]}
    numbers |= {f"cost/{name}": count for name, count in verdict["cost"].items()}
    if study.seconds is not None:
        numbers["seconds"] = study.seconds
    return {**numbers, "documents": verdict["documents"], "tokens": verdict["tokens"]}


def _tables(verdict: Mapping[str, Any]) -> dict[str, Table]:
    """Rank correlation of each metric of representativeness with the divergence, with its interval."""
    rows = [
        [answer["scheme"], *(entry[key] for key in ("metric", "rho", "low", "high"))]
        for answer in verdict["representativeness"]["by_scheme"]
        for entry in answer["metrics"]
    ]
    return {"rank_correlations.json": Table(("scheme", "metric", "rho", "low", "high"), rows)} if rows else {}


def _settings(verdict: Mapping[str, Any]) -> dict[str, Any]:
    names = ("baseline", "rules", "sizes", "schemes", "draws", "share", "seed", "confidence", "resamples")
    return {name: verdict[name] for name in names}
