"""A study in MLflow on SQLite: one parent, a child per arm, found again, sorted by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plumbline.tracking.client import Tracking
from plumbline.tracking.study import StudyRecord, log_study_record
from plumbline.tracking.view import SAVED
from tests.helpers.tracking import table

TESTED = {
    "difference": -0.02,
    "low": -0.03,
    "high": -0.01,
    "p_value": 0.001,
    "p_adjusted": 0.004,
    "smallest_difference": 0.015,
    "detectable": 0.02,
    "draws_needed": None,
    "spread_ratio": {"estimate": 0.5, "low": 0.2, "high": 0.9},
    "verdict": "better",
}


def verdict() -> dict[str, Any]:
    def arm(n: int, rule: str) -> dict[str, Any]:
        draws = [{"draw": d, "set": f"{rule}{n}{d}"} for d in range(5)]
        numbers = {"kl_mean": 0.1 / n, "kl_sd": 0.01, "top1_agreement": 0.9, "calibration_tokens": 100, "fallbacks": 0}
        return {"scheme": "w4", "n": n, "rule": rule, "draws": draws, **numbers}

    rules = {"random": {"strategy": "random"}, "clusters": {"strategy": "embedding_cluster", "k": 3}}
    controls = [{"scheme": "w4", "n": n, "rule": "rtn", "kl_mean": 0.2, **TESTED, "verdict": "worse"} for n in (8, 128)]
    asked = {"baseline": "random", "sizes": [8, 128], "schemes": ["w4"], "draws": 5, "share": 0.8, "seed": 0}
    return {
        "headline": "clusters is better.",
        "sentences": ["w4, n = 8: clusters is better."],
        "comparisons": [{"scheme": "w4", "n": n, "rule": "clusters", **TESTED} for n in (8, 128)],
        "controls": controls,
        "arms": [arm(n, rule) for n in (8, 128) for rule in rules],
        "by_domain": [
            {"scheme": "w4", "n": n, "rule": rule, "domains": {"code": {"kl_mean": 0.1 / n, "difference": None}}}
            for n in (8, 128)
            for rule in rules
        ],
        "cost": {"sets": 20, "tokens": 2000},
        "size_curve": [{"scheme": "w4", "enough": 8}],
        "representativeness": {
            "by_scheme": [{"scheme": "w4", "metrics": [{"metric": "tokens", "rho": 0.3, "low": 0.1, "high": 0.5}]}]
        },
        "rules": rules,
        "confidence": 0.95,
        "resamples": 400,
        "documents": 12,
        "tokens": 1200,
        **asked,
    }


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    return Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def record(tmp_path: Path) -> StudyRecord:
    page = tmp_path / "study.html"
    page.write_text("<p>")
    schemes = {"w4": {"method": "gptq", "weight_bits": 4}}
    tags = {"code_version": "abc"}
    return StudyRecord("rules", verdict(), "tiny", "1" * 32, "2" * 32, schemes, [page], tags, seconds=12.5)


def test_a_study_is_a_parent_with_a_child_per_arm(tracking: Tracking, record: StudyRecord) -> None:
    from mlflow import MlflowClient

    parent = log_study_record(tracking, record).run_id
    client = MlflowClient(tracking.uri, tracking.uri)
    experiment = client.get_experiment_by_name("plumbline study tiny")
    run = client.get_run(parent)
    assert run.info.run_name == "rules" and run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"].startswith("clusters is better.")
    assert run.data.metrics["comparisons/better"] == 2 and run.data.metrics["enough/w4"] == 8
    [correlation] = table(client, parent, "rank_correlations.json")
    assert (correlation["scheme"], correlation["metric"], correlation["low"]) == ("w4", "tokens", 0.1)
    assert run.data.metrics["cost/tokens"] == 2000 and run.data.metrics["seconds"] == 12.5
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == ["2" * 32]
    assert [f.path for f in client.list_artifacts(parent)] == ["rank_correlations.json", "study.html"]
    assert SAVED in experiment.tags and "metrics.`difference`" in experiment.tags[SAVED]
    assert run.info.end_time - run.info.start_time == 12_500

    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    children = client.search_runs([experiment.experiment_id], query, order_by=["attributes.run_name ASC"])
    assert [c.info.run_name for c in children] == [
        f"w4 n={n} {rule}" for n in ("008", "128") for rule in ("clusters", "random", "rtn")
    ]
    clusters = children[0]
    assert clusters.data.params["rule.k"] == "3" and clusters.data.params["scheme.method"] == "gptq"
    assert clusters.data.metrics["difference_low"] == -0.03 and clusters.data.metrics["detectable"] == 0.02
    assert clusters.data.metrics["kl_mean/code"] == 0.1 / 8 and "difference/code" not in clusters.data.metrics
    assert "draws_needed" not in clusters.data.metrics and clusters.data.tags["verdict"] == "better"
    (dataset,) = clusters.inputs.dataset_inputs
    assert dataset.dataset.name == "clusters-8 × 5" and len(dataset.dataset.digest) == 32
    assert children[1].data.params["kind"] == "baseline" and children[2].data.params["kind"] == "control"
    best = client.search_runs([experiment.experiment_id], query, order_by=["metrics.kl_mean ASC"])[0]
    assert best.data.params["n"] == "128"


def test_the_same_output_is_recorded_once_and_another_again(tracking: Tracking, record: StudyRecord) -> None:
    first = log_study_record(tracking, record).run_id
    assert log_study_record(tracking, record).run_id == first
    assert log_study_record(tracking, replace(record, dvc_md5="3" * 32)).run_id != first


def test_a_record_that_fails_is_marked_and_made_again(tracking: Tracking, record: StudyRecord, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with pytest.raises(Exception, match="gone.html"):
        log_study_record(tracking, replace(record, artifacts=[tmp_path / "gone.html"]))
    parent = log_study_record(tracking, record).run_id
    client = MlflowClient(tracking.uri, tracking.uri)
    experiment = client.get_experiment_by_name("plumbline study tiny")
    runs = client.search_runs([experiment.experiment_id], "tags.`dvc.stage` = 'study@rules'")
    assert {run.info.status: run.info.run_id == parent for run in runs} == {"FINISHED": True, "FAILED": False}


def test_a_study_that_failed_in_a_child_is_made_again_with_all_children(
    tracking: Tracking, record: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create = MlflowClient.create_run

    def create_or_fail(client: MlflowClient, *arguments: Any, run_name: str, **options: Any) -> Any:
        if run_name == "w4 n=128 random":
            raise OSError("no space left")
        return create(client, *arguments, run_name=run_name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_run", create_or_fail)
        with pytest.raises(OSError, match="no space left"):
            log_study_record(tracking, record)
    parent = log_study_record(tracking, record).run_id
    assert log_study_record(tracking, record).run_id == parent
    client = MlflowClient(tracking.uri, tracking.uri)
    experiment = client.get_experiment_by_name("plumbline study tiny").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 6 and {child.info.status for child in children} == {"FINISHED"}
